// Two answers, one choice. Gradio runs this in the component, and gives it element, props, server, watch and trigger.
const {setText, request, outbox, inSight, onKeys, showTiles} = window.lab;
const $ = selector => element.querySelector(selector);
const HELD = 3;           // pairs that are here before they are needed
const SETTLED = 400;      // milliseconds before which nobody has read two answers: a double click chooses once
let of = {}, news = {}, queue = [], decided = new Set(), made = [];
let shown = null, since = 0, asked = 0, heard = 0, looking = false, ticks = 0;

const say = text => setText($('.saved'), text);

async function call(name, details) {
  const turn = ++asked, sent = {...of, count: HELD + box.letters.length, ...details};
  const answer = await request(server, name, sent);
  box.failures = 0;
  // An answer may arrive after one to a later request.
  if (sent.run === of.run && answer.pairs && turn > heard) { heard = turn; take(answer); }
  return answer;
}
const box = outbox(element, call, say, show);
const post = (name, details, then) => box.post(name, {...of, ...details}, then);

function take(answer) {
  news = answer;
  queue = [...queue.slice(0, 1), ...answer.pairs.filter(pair => !decided.has(pair.id) && pair.id !== queue[0]?.id)];
  setText($('.person'), 'You choose as ' + answer.name + ' \u00b7 ' + answer.own.toLocaleString('en')
    + (answer.own === 1 ? ' choice saved' : ' choices saved'));
  showTiles($('.stands dl'), answer.tallies);
  $('.forget').hidden = !answer.own;
  if (!answer.own) $('.sure').hidden = true;
  setText($('.train-on'), answer.train);
  $('.train-on').disabled = !answer.enough;
  showHonest();
  show();
}

function show() {
  const pair = queue[0], making = !pair && (box.failures || 'doing' in news || news.error);
  $('.duel').hidden = !pair;
  $('.making').hidden = !making;
  if (making) {
    const doing = box.failures ? 'Waiting for the server' : news.doing || 'The next questions come in a moment';
    setText($('.making .verdict'), news.error || doing + '\u2026');
    $('.making progress').hidden = Boolean(news.error);
    const long = !news.error && !box.failures && news.doing && news.seconds > 2;
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

onKeys(element, {1: 'a', 2: 'b', 0: 'tie', ' ': 'skip', u: 'undo', backspace: 'undo'}, act);

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
  box.letters.splice(box.busy ? 1 : 0);
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
  if (looking || box.busy || !of.run) return;  // what is being sent brings how things stand
  looking = true;
  try {
    const answer = await call('look');
    if (answer.refused) { news = {error: answer.refused}; queue = []; }
  } catch { box.failures += 1; }
  looking = false;
  show();
}
// Each acknowledgement says how things stand; in between the page asks, more often while it has nothing to show.
const timer = setInterval(() => {
  if (!element.isConnected) return clearInterval(timer);
  ticks += 1;
  if (inSight(element) && (ticks % 4 === 0 || !queue.length)) look();
}, 1000);

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
  if (inSight(element)) look();  // else when the tab is opened: only then is a model loaded
}
watch('value', attach);
attach();
