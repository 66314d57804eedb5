// Two answers, one choice. Gradio runs this in the component, and gives it element, props, server, watch and trigger.
const {el, setText, request, outbox, inSight, onKeys, showTiles} = window.lab;
const $ = selector => element.querySelector(selector);
const HELD = 3;           // pairs that are here before they are needed
const SETTLED = 400;      // milliseconds before which nobody has read two answers: a double click chooses once
let of = {}, news = {}, queue = [], decided = new Set(), made = [];
let shown = null, since = 0, asked = 0, heard = 0, looking = false, ticks = 0;

const say = text => setText($('.saved'), text);

async function call(name, details) {
  const turn = ++asked, sent = {...of, count: HELD + box.letters.length, ...details, between: of.between};
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
  showLive();
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
const alone = () => $('.on-all .either input').checked;
function showHonest() { setText($('.honest'), alone() || !news.enough ? news.alone ?? '' : news.together); }
async function showExpected() {
  showHonest();
  const answer = await server.expect({...of, alone: alone()});
  setText($('.expected'), answer?.expected ?? '');
}
for (const input of element.querySelectorAll('.on-all .either input')) input.addEventListener('change', showExpected);
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

const fill = (list, choices) => list.replaceChildren(...choices.map(([value, label]) => {
  const option = el('option', '', label);
  option.value = value;
  return option;
}));

// Learn live
const live = $('.while-choosing'), modes = element.querySelectorAll('.modes input');
let picked = false;  // whether this person has chosen what to see below
function showMode() {
  live.hidden = !modes[1].checked;
  $('.on-all').hidden = modes[1].checked;
}
for (const input of modes) input.addEventListener('change', () => { picked = true; showMode(); });
const steering = what => live.querySelector('[data-steer="' + what + '"]');
function showLive() {
  const now = news.live, active = Boolean(now?.active), yours = Boolean(now?.yours);
  if (active && !picked && !modes[1].checked) { modes[1].checked = true; showMode(); }
  setText(live.querySelector('.state'), now ? now.state : 'Learn while we choose');
  setText(live.querySelector('.share'), now?.share ?? '');
  setText(live.querySelector('.doing'), now?.doing ? now.doing + (active ? '\u2026' : '') : '');
  const bar = live.querySelector('progress');
  bar.hidden = !now?.total;
  if (now?.total) { bar.max = now.total; bar.value = now.done; }
  steering('start').hidden = Boolean(now);
  steering('resume').hidden = !now || active || !now.resumable || !yours;
  steering('stop').hidden = !active || !yours;
  steering('afresh').hidden = !now || active && !yours;
  live.querySelector('.earlier').hidden = !now || !yours || now.states.length < 2;
  setText(live.querySelector('.rule'), active && !yours ? 'Somebody else has started this, and may stop it.'
    : now ? 'Going back leaves the choices since then aside, starting afresh all so far. They stay saved.' : '');
  const list = live.querySelector('select'), states = (now?.states ?? []).filter(([n]) => n !== now.number);
  const wanted = states.map(([n, label]) => n + label).join();
  if (list.dataset.shows !== wanted && document.activeElement !== list) {
    const chosen = list.value;
    fill(list, states.reverse());
    if (states.some(([n]) => String(n) === chosen)) list.value = chosen;
    list.dataset.shows = wanted;
  }
  setText($('.now'), active ? 'Learning live. ' + now.state + ' ' + now.share : news.picked ?? '');
  $('.whose').hidden = active || !voices;
}
for (const button of live.querySelectorAll('[data-steer]'))
  button.addEventListener('click', async () => {
    const told = live.querySelector('.refused');
    button.disabled = true;
    const asked = {...of, what: button.dataset.steer, state: Number(live.querySelector('select').value)};
    const answer = await server.steer(asked);
    button.disabled = false;
    told.hidden = Boolean(answer && !answer.error);
    setText(told, answer?.error ?? (answer ? '' : 'The server does not answer; try again.'));
    queue = queue.slice(0, 1);  // the others are of who answered before
    look();
  });

// Whose answers: the base model's, or those of two models
let voices = null;
async function showVoices() {
  const answer = await server.who(of);
  voices = answer?.voices?.length > 1 ? answer.voices : null;
  for (const list of element.querySelectorAll('.whose select')) fill(list, voices ?? []);
  $('.whose').hidden = !voices || Boolean(news.live?.active);
}
for (const list of element.querySelectorAll('.whose select'))
  list.addEventListener('change', () => {
    of = {...of, between: [...element.querySelectorAll('.whose select')].map(each => each.value)};
    news = {doing: 'Asking for their answers'};
    queue = [];
    heard = asked;  // what was asked before is of other models
    show();
    look();
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
  setText($('.on-all .either label:last-child span'), props.value.together);
  news = {}; queue = []; decided = new Set(); made = [];
  looking = false;
  say('');
  show();
  if (!of.run) return;
  showExpected();
  showVoices();
  if (inSight(element)) look();  // else when the tab is opened: only then is a model loaded
}
watch('value', attach);
attach();
