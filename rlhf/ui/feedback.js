// Two answers, one choice. Gradio runs this in the component, and gives it element, props, server, watch and trigger.
const {el, setText} = window.lab;
const $ = selector => element.querySelector(selector);
const HELD = 3;           // pairs that are here before they are needed
const SETTLED = 400;      // milliseconds before which nobody has read two answers: a double click chooses once
const PATIENCE = 15000;   // milliseconds after which a request counts as lost
let of = {}, news = {}, queue = [], decided = new Set(), made = [], outbox = [];
let shown = null, since = 0, asked = 0, heard = 0, busy = false, looking = false, failures = 0, ticks = 0;

const wait = time => new Promise(done => setTimeout(done, time));
const visible = () => element.offsetParent !== null && !document.hidden;
const say = text => setText($('.saved'), text);

// Gradio answers undefined where the server could not be reached or failed.
async function call(name, details) {
  const turn = ++asked, request = {...of, count: HELD + outbox.length, ...details};
  const answer = await Promise.race([server[name](request), wait(PATIENCE)]);
  if (!answer) throw new Error('The server does not answer.');
  if (answer.again) throw new Error(answer.again);
  failures = 0;
  // An answer may arrive after one to a later request.
  if (request.run === of.run && answer.pairs && turn > heard) { heard = turn; take(answer); }
  return answer;
}

function take(answer) {
  news = answer;
  queue = [...queue.slice(0, 1), ...answer.pairs.filter(pair => !decided.has(pair.id) && pair.id !== queue[0]?.id)];
  setText($('.person'), 'You choose as ' + answer.name + ' \u00b7 ' + answer.own.toLocaleString('en')
    + (answer.own === 1 ? ' choice saved' : ' choices saved'));
  const rows = $('.stands dl');
  while (rows.childElementCount < answer.tallies.length) {
    const tile = el('div');
    tile.append(el('dt'), el('dd', 'value'), el('dd', 'gloss'));
    rows.append(tile);
  }
  answer.tallies.forEach((texts, i) => texts.forEach((text, j) => setText(rows.children[i].children[j], text)));
  $('.forget').hidden = !answer.own;
  if (!answer.own) $('.sure').hidden = true;
  setText($('.train-on'), answer.train);
  $('.train-on').disabled = !answer.enough;
  showHonest();
  show();
}

function show() {
  const pair = queue[0], making = !pair && (failures || 'doing' in news || news.error);
  $('.duel').hidden = !pair;
  $('.making').hidden = !making;
  if (making) {
    const doing = failures ? 'Waiting for the server' : news.doing || 'The next questions come in a moment';
    setText($('.making .verdict'), news.error || doing + '\u2026');
    $('.making progress').hidden = Boolean(news.error);
    const long = !news.error && !failures && news.doing && news.seconds > 2;
    setText($('.making .gloss'), long ? Math.round(news.seconds) + ' s so far. What is written is kept.' : '');
  }
  if (pair && pair.id !== shown?.id) {
    since = performance.now();
    setText($('.question'), pair.question);
    [...element.querySelectorAll('.duel .text')].forEach((node, i) => setText(node, i ? pair.b : pair.a));
  }
  shown = pair ?? null;
  $('[data-choice="undo"]').disabled = !made.length && !news.last;
}

// What people do is sent in order, each until the server has acknowledged it.
async function send() {
  if (busy) return;
  busy = true;
  while (outbox.length) {
    const {name, details, then} = outbox[0];
    try {
      const answer = await call(name, details);
      outbox.shift();
      then?.(answer);
      say(answer.refused || answer.said || '');
    } catch (error) {
      failures += 1;
      const n = outbox.length;
      say(error.message + ' ' + (n === 1 ? 'Your last choice is' : 'Your last ' + n + ' choices are')
        + ' not saved yet: leave this page open, it goes on trying.');
      show();
      await wait(Math.min(4000, 250 * 2 ** failures));
    }
  }
  busy = false;
}

function post(name, details, then) {
  outbox.push({name, details: {...of, ...details}, then});
  send();
}

function choose(choice) {
  if (!shown || performance.now() - since < SETTLED) return;
  const pair = queue.shift();
  decided.add(pair.id);
  made.push(pair);
  show();
  post('choose', {id: pair.id, choice});
}

function undo() {
  const pair = made.pop(), id = pair?.id ?? news.last;
  if (!id) return;
  if (pair) bring(pair);
  // What was chosen before this page was opened is brought by the server.
  post('undo', {id}, answer => { if (answer.back && !pair) bring(answer.back); });
}

function bring(pair) {
  decided.delete(pair.id);
  queue = [pair, ...queue.filter(other => other.id !== pair.id)];
  show();
}

const act = choice => choice === 'undo' ? undo() : choose(choice);
for (const button of element.querySelectorAll('.ballot button'))
  button.addEventListener('click', event => {
    if (event.detail) button.blur();  // after a click, the space key is for Skip again
    act(button.dataset.choice);
  });

const KEYS = {1: 'a', 2: 'b', 0: 'tie', ' ': 'skip', u: 'undo', backspace: 'undo'};
document.addEventListener('keydown', function key(event) {
  if (!element.isConnected) return document.removeEventListener('keydown', key);
  const choice = KEYS[event.key.toLowerCase()], at = document.activeElement;
  if (!choice || !visible() || event.ctrlKey || event.metaKey || event.altKey) return;
  if (at.matches('input:not([type="radio"]), textarea, select, [contenteditable]')) return;
  // On a button, a link or a switch the space key presses it; on the tab that is open it would do nothing.
  if (event.key === ' ' && at.matches('button, a, summary, input') && !at.matches('[role="tab"]')) return;
  event.preventDefault();
  if (!event.repeat) act(choice);
});

// Deleting asks once more, in place.
$('.forget').addEventListener('click', () => {
  setText($('.sure span'), news.own === 1 ? 'Delete your choice? It cannot be brought back.'
    : 'Delete your ' + news.own.toLocaleString('en') + ' choices? They cannot be brought back.');
  $('.sure').hidden = false;
  $('.sure .no').focus();
});
const unsure = () => { $('.sure').hidden = true; };
$('.sure .no').addEventListener('click', unsure);
$('.sure .yes').addEventListener('click', () => {
  unsure();
  outbox.splice(busy ? 1 : 0);
  made = [];
  post('take_away', {}, answer => { decided.clear(); if (answer.pairs) take(answer); });
});

// Training
const alone = () => $('.either input').checked;
function showHonest() { setText($('.honest'), alone() || !news.enough ? news.alone ?? '' : news.together); }
async function showExpected() {
  showHonest();
  const answer = await server.expect({...of, alone: alone()});
  setText($('.expected'), answer?.expected ?? '');
}
for (const input of element.querySelectorAll('.either input')) input.addEventListener('change', showExpected);
$('.train-on').addEventListener('click', async () => {
  const button = $('.train-on'), told = $('.refused');
  button.disabled = true;
  told.hidden = true;
  const answer = await server.train({...of, alone: alone()});
  button.disabled = !news.enough;
  if (answer?.run) {
    trigger('started', {run: answer.run});
    [...document.querySelectorAll('#tabs [role="tab"]')].find(tab => tab.textContent.trim() === 'Train')?.click();
  } else {
    setText(told, answer?.error ?? 'The server does not answer; try again.');
    told.hidden = false;
  }
});

async function look() {
  if (looking || busy || !of.run) return;  // what is being sent brings how things stand
  looking = true;
  try {
    const answer = await call('look');
    if (answer.refused) { news = {error: answer.refused}; queue = []; }
  } catch { failures += 1; }
  looking = false;
  show();
}
// Each acknowledgement says how things stand; in between the page asks, more often while it has nothing to show.
const timer = setInterval(() => {
  if (!element.isConnected) return clearInterval(timer);
  ticks += 1;
  if (visible() && (ticks % 4 === 0 || !queue.length)) look();
}, 1000);
addEventListener('beforeunload', event => { if (element.isConnected && outbox.length) event.preventDefault(); });

function attach() {
  if (!props.value || props.value.run === of.run && props.value.visitor === of.visitor) return;
  of = {run: props.value.run, visitor: props.value.visitor};
  setText($('.either label:last-child span'), props.value.together);
  news = {}; queue = []; decided = new Set(); made = [];
  looking = false;
  say('');
  show();
  if (!of.run) return;
  showExpected();
  if (visible()) look();  // else when the tab is opened: only then is a model loaded
}
watch('value', attach);
attach();
