// The live view of a run. Gradio runs this in the component, and gives it element, props, server and watch.
const {el, setText, plot, draw, markChanges, scoreBar, number, clock, address, download, copy, inSight} = window.lab;
const $ = selector => element.querySelector(selector);
const ACTIVE = ['waiting', 'queued', 'running', 'stopping'];
const WORDS = {waiting: 'In line', queued: 'Starting', running: 'Running', stopping: 'Stopping', stopped: 'Stopped', finished: 'Finished',
               failed: 'Failed', diverged: 'Diverged', interrupted: 'Interrupted', none: 'No run yet'};
let run = null, seen = {}, samples = [], steps = [], follow = true, active = false, busy = false, timer = null;
let texts = null, others = [], over = {};
// The server says in how many seconds to look again: later where many pages look. Out of sight three times as late.
const page = Math.random().toString(36).slice(2);
let looked = -Infinity, again = 1;
const due = () => {
  const inView = inSight(element) || document.body.classList.contains('projected-view');
  return looked + 1000 * again * (inView ? 1 : 3) - 500;  // half a turn of the timer
};

function reset(id) {
  run = id; seen = {}; samples = []; steps = []; follow = true; active = false;
  for (const chart of element.querySelectorAll('.chart')) {
    const node = chart.querySelector('.plot');
    if (node.figure) { Plotly.purge(node); node.classList.remove('drawn'); node.figure = null; }
  }
  $('.cards').replaceChildren();
  $('.leave').hidden = true;
  others = []; over = {};
  for (const more of element.querySelectorAll('.more')) { more.hidden = true; more.open = false; }
  setText($('.said'), '');
}

// On a phone and during a run the form is folded, so that the verdict and the curves come first.
const phone = matchMedia('(max-width: 760px)');
function fold(folded) {
  element.closest('.train').classList.toggle('folded', folded);
  const button = document.querySelector('#unfold button');
  if (button) {
    setText(button, folded ? 'Show settings' : 'Hide settings');
    button.setAttribute('aria-expanded', String(!folded));
  }
}
// Start may be pressed from far down in the form: its run comes into sight.
let pressed = false, started = false;
// A run that has ended may be resumed: it is asked about again.
let resumed = false;
function show() {
  started = false;
  const {top, bottom} = $('.verdict').getBoundingClientRect();
  if (top >= 0 && bottom <= innerHeight) return;
  const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
  $('.live').scrollIntoView({behavior: still ? 'auto' : 'smooth', block: 'start'});
}
if (element.closest('.train')) {
  fold(phone.matches);
  document.addEventListener('click', event => {
    if (event.target.closest?.('#unfold')) fold(!element.closest('.train').classList.contains('folded'));
    if (event.target.closest?.('#start')) pressed = true;
    if (event.target.closest?.('#resume')) watchAgain();
  });
}

function showState(news) {
  const pill = $('.pill');
  pill.dataset.state = news.state;
  setText(pill, WORDS[news.state] || news.state);
  const list = $('.phases');
  if (list.childElementCount !== news.phases.length) {
    list.replaceChildren(...news.phases.map(() => {
      const item = el('li'), bar = el('span', 'bar');
      bar.append(el('span', 'fill'));
      item.append(el('span', 'name'), bar);
      return item;
    }));
  }
  news.phases.forEach((phase, i) => {
    const item = list.children[i], share = phase.total ? phase.step / phase.total : phase.state === 'finished' ? 1 : 0;
    item.dataset.state = phase.state;
    const counted = phase.total && ACTIVE.includes(phase.state) && phase.label !== 'Comparison';
    setText(item.querySelector('.name'), counted
      ? phase.label + ' \u00b7 ' + phase.step + ' of ' + phase.total : phase.label);
    item.querySelector('.fill').style.width = 100 * Math.min(1, share) + '%';
  });
  const parts = [];
  if (news.elapsed !== null) parts.push(clock(news.elapsed) + (ACTIVE.includes(news.state) ? ' elapsed' : ''));
  const last = news.phases.length && ACTIVE.includes(news.phases.at(-1).state);
  if (news.left) parts.push('about ' + clock(news.left) + (last ? ' left' : ' left in this step'));
  if (news.speed) parts.push(number(news.speed, news.speed < 10 ? 1 : 0) + ' episodes/s');
  setText($('.clock'), parts.join(' \u00b7 '));
  const verdict = $('.verdict');
  verdict.dataset.tone = news.headline.tone;
  setText(verdict, news.headline.text);
  setText($('.details'), news.headline.details);
  $('.warning').hidden = !news.warning;
  setText($('.warning'), news.warning);
}

function extend(figure, {points, ends}) {
  for (const trace of figure.data) {
    if (!trace.meta) continue;  // a line that stands still
    const {x, key, std, sign, end, minus = 0} = trace.meta;
    if (end) Object.assign(trace, ends[end]);
    (points[key] || []).forEach((value, i) => {
      if (value === null) return;
      trace.x.push(points[x][i]);
      trace.y.push(std ? value + sign * (points[std][i] || 0) : value - minus);
    });
  }
  figure.layout.datarevision = (figure.layout.datarevision || 0) + 1;
}

function showCharts(news) {
  const charts = [...element.querySelectorAll('.chart')];
  // Before drawing, since it decides the width. What ended without a point has no curves to come.
  for (const chart of charts) {
    const part = news.parts[chart.dataset.part];
    chart.hidden = !part || (part.empty && news.state !== 'none' && !ACTIVE.includes(news.state));
  }
  for (const chart of charts.filter(chart => !chart.hidden)) {
    const part = news.parts[chart.dataset.part], node = chart.querySelector('.plot');
    setText(chart.querySelector('.waiting'), part.waiting);
    if (part.figure) {
      part.figure.data.push(...(over[chart.dataset.part] || []));
      plot(node, part.figure);
    }
    else if (node.figure && part.rows) { extend(node.figure, part); draw(node); }
  }
}

function side(name) {
  const box = el('div', 'answer ' + name);
  box.append(el('span', 'who', name === 'base' ? 'base' : 'PPO'), el('p', 'text'), el('div', 'mark'), el('p', 'fooled'));
  box.querySelector('.text').dir = 'auto';
  return box;
}

function showCards() {
  const cards = $('.cards'), scores = samples.map(s => s.score).filter(s => s !== null);
  $('.pinned').hidden = !samples.length;
  $('.simulated').hidden = !samples.some(s => s.gold !== undefined);
  if (!samples.length) return;
  const low = Math.min(...scores), high = Math.max(...scores);
  const at = steps[follow ? steps.length - 1 : +$('input').value];
  const first = samples.filter(s => s.step === steps[0]), now = samples.filter(s => s.step === at);
  first.forEach((before, i) => {
    let card = cards.children[i];
    if (!card) {
      card = el('article', 'card');
      card.append(el('h4'), side('base'), side('ppo'));
      card.firstChild.dir = 'auto';
      cards.append(card);
    }
    setText(card.querySelector('h4'), before.prompt);
    const after = now.find(s => s.index === before.index) || before;
    for (const [name, sample] of [['base', before], ['ppo', after]]) {
      const box = card.querySelector('.' + name), print = JSON.stringify([before, sample, low, high]);
      if (box.print === print) continue;
      box.print = print;
      markChanges(box.querySelector('.text'), name === 'base' ? [[sample.response, false]] : sample.changes);
      const bars = [scoreBar(sample.score, low, high)], rubric = sample.gold ?? null;
      if (rubric !== null) bars.push(scoreBar(rubric, 0, 1, 'rubric'));
      box.querySelector('.mark').replaceChildren(...bars);
      const fooled = rubric !== null && rubric < 0.3 && sample.score > (low + high) / 2;
      setText(box.querySelector('.fooled'), fooled ? 'High score, low rubric: this answer fools the reward model.' : '');
    }
  });
  const last = at === steps[0] ? 'before PPO' : 'update ' + at;
  setText($('.when span'), last + (follow && active ? ', live' : ''));
}

function showSamples(fresh) {
  if (fresh.length) {
    samples.push(...fresh);
    steps = [...new Set(samples.map(s => s.step))].sort((a, b) => a - b);
    $('input').max = steps.length - 1;
    if (follow) $('input').value = steps.length - 1;
  }
  showCards();
}

// Of a run that has ended nothing comes any more; in a class, word from the teacher does.
function rest(news) {
  clearInterval(timer);
  if (news.class) timer = setInterval(tick, 3000);
}

function apply(news) {
  if (news.error) {
    rest(news);
    $('.verdict').dataset.tone = 'bad';
    setText($('.details'), '');
    return setText($('.verdict'), news.error);
  }
  const was = active;
  active = ACTIVE.includes(news.state);
  const train = element.closest('.train');
  if (train && active !== was) {
    train.classList.toggle('active', active);
    fold(active || phone.matches);
  }
  if (started) show();
  seen = news.seen;
  showState(news); showCharts(news); showSamples(news.samples);
  if (news.leave) showWaysOut(news.leave);
  $('.detail-curves').hidden = !Object.values(news.parts).some(part => part.empty === false);
  if ($('.detail-curves').open && Object.values(news.parts).some(part => part.rows)) showDetails();
  resumed &&= !active;
  if (!active && !resumed) rest(news);
  if (was && !active) trigger('ended', {run});
}

function showWaysOut(leave) {
  texts = leave;
  $('.leave').hidden = $('.given-settings').hidden = false;
  setText($('.download'), 'Download run' + (leave.size < 0.1 ? '' : ', ' + megabytes(leave.size)));
}

// The run's settings, and other runs: theirs beside it, and their curves over its own.
async function showSettings() {
  const asked = run, found = await server.beside({run, others});
  if (asked !== run) return;
  const table = $('.given');
  if (found.error) return table.tBodies[0].replaceChildren(el('tr', '', found.error));
  const row = (tag, cells) => {
    const line = el('tr');
    line.append(...cells.map((cell, i) => el(i ? tag : 'th', '', cell)));
    line.firstChild.scope = tag === 'th' ? 'col' : 'row';
    return line;
  };
  table.tHead.replaceChildren(row('th', ['Setting', ...found.names]));
  table.tBodies[0].replaceChildren(...found.rows.map(({name, values, differs}) => {
    const line = row('td', [name, ...values]);
    line.classList.toggle('differs', differs);
    return line;
  }));
  const choose = $('.given-settings select');
  const option = (label, value) => Object.assign(el('option', '', label), {value});
  const free = found.choices.filter(choice => !others.includes(choice.id));
  choose.replaceChildren(option('choose a run', ''), ...free.map(choice => option(choice.label, choice.id)));
  choose.disabled = others.length === 3 || !free.length;
  $('.others').replaceChildren(...others.map(id => {
    const button = el('button', '', found.labels[id] + ' \u00d7');
    button.type = 'button';
    button.title = 'Take it away again';
    button.addEventListener('click', () => { others = others.filter(other => other !== id); showSettings(); });
    return button;
  }));
  over = found.over;
  for (const chart of element.querySelectorAll('.chart')) {
    const node = chart.querySelector('.plot');
    if (!node.figure) continue;
    node.figure.data = node.figure.data.filter(trace => !trace.meta?.over).concat(over[chart.dataset.part] || []);
    node.figure.layout.datarevision = (node.figure.layout.datarevision || 0) + 1;
    draw(node);
  }
  if ($('.detail-curves').open) showDetails();
}
$('.given-settings').addEventListener('toggle', event => { if (event.target.open) showSettings(); });
$('.given-settings select').addEventListener('change', event => { others.push(event.target.value); showSettings(); });

async function showDetails() {
  const box = $('.detail-curves .charts'), asked = run, found = await server.details({run, others});
  if (asked !== run || found.error) return;
  const names = Object.keys(found);
  if (box.childElementCount !== names.length)
    box.replaceChildren(...names.map(name => {
      const chart = el('figure', 'detail');
      chart.append(el('figcaption', '', name), el('div', 'plot'));
      return chart;
    }));
  names.forEach((name, i) => {
    const chart = box.children[i], node = chart.querySelector('.plot');
    setText(chart.querySelector('figcaption'), name);
    node.style.height = found[name].layout.height + 'px';
    plot(node, found[name]);
  });
}
$('.detail-curves').addEventListener('toggle', event => { if (event.target.open) showDetails(); });

const megabytes = size => number(size, size < 10 ? 1 : 0) + ' MB';

for (const button of element.querySelectorAll('.copy'))
  button.addEventListener('click', async () => {
    const text = texts[button.dataset.what], message = $('.said');
    try {
      await copy(text);
      message.replaceChildren('Copied ', el('code', '', button.dataset.what === 'command' ? text : 'a script'));
    } catch (error) {
      message.replaceChildren('Copying failed; please copy it from here: ', el('code', 'whole', text));
    }
  });

$('.download').addEventListener('click', async event => {
  const button = event.target, message = $('.said'), asked = run;
  button.disabled = true;
  setText(message, 'Packing…');
  try {
    const file = await server.download({run: asked});
    if (asked !== run) return;
    setText(message, file.error || file.name + ', ' + megabytes(file.size) + ', without checkpoints');
    if (file.error) return;
    download(file);
  } catch (error) {
    setText(message, 'The zip file could not be written; is the disk full?');
  } finally { button.disabled = false; }
});

async function tick() {
  if (!element.isConnected) return clearInterval(timer);
  if (busy || document.hidden || performance.now() < due()) return;
  busy = true;
  const asked = run;
  try {
    const news = await server.poll({run, seen, page});
    [looked, again] = [performance.now(), news.again];
    if (asked === run) apply(news);
    if (news.class) document.dispatchEvent(new CustomEvent('class', {detail: news.class}));
  } catch (error) {
    setText($('.clock'), 'No answer from the server; trying again');
  } finally { busy = false; }
  if (asked !== run) lookNow();
}

function lookNow() {
  looked = -Infinity;
  tick();
}

function attach() {
  if (props.value === run) return;
  [started, pressed, resumed] = [pressed, false, false];
  reset(props.value);
  if (element.closest('#live') && run) address({run});
  watchAgain(false);
  lookNow();
}

function watchAgain(ended = true) {
  resumed = ended;
  clearInterval(timer);
  timer = setInterval(tick, 1000);
}

$('input').addEventListener('input', event => {
  follow = +event.target.value === steps.length - 1;
  showCards();
});
watch('value', attach);
attach();
