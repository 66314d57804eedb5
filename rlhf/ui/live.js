// The live view of a run. Gradio runs this in the component, and gives it element, props, server and watch.
const {el, setText, plot, draw, markChanges, scoreBar, number, clock} = window.lab;
const $ = selector => element.querySelector(selector);
const ACTIVE = ['queued', 'running', 'stopping'];
const WORDS = {queued: 'Starting', running: 'Running', stopping: 'Stopping', stopped: 'Stopped', finished: 'Finished',
               failed: 'Failed', diverged: 'Diverged', interrupted: 'Interrupted', none: 'No run yet'};
let run = null, seen = {}, samples = [], steps = [], follow = true, active = false, busy = false, timer = null;
let texts = null;

function reset(id) {
  run = id; seen = {}; samples = []; steps = []; follow = true; active = false;
  for (const chart of element.querySelectorAll('.chart')) {
    const node = chart.querySelector('.plot');
    if (node.figure) { Plotly.purge(node); node.classList.remove('drawn'); node.figure = null; }
  }
  $('.cards').replaceChildren();
  $('.leave').hidden = true;
  setText($('.said'), '');
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
}

function extend(figure, columns) {
  for (const trace of figure.data) {
    if (!trace.meta) continue;  // a line that stands still
    const {x, key, std, sign, end, digits, percent, minus = 0} = trace.meta;
    const values = columns[key || end] || [];
    values.forEach((value, i) => {
      if (value === null) return;
      if (end) {
        trace.x = [columns[x][i]]; trace.y = [value - minus];
        trace.text = ['\u2002' + (percent ? Math.round(100 * value) + ' %' : number(value - minus, digits))];
      } else {
        trace.x.push(columns[x][i]);
        trace.y.push(std ? value + sign * (columns[std][i] || 0) : value - minus);
      }
    });
  }
  figure.layout.datarevision = (figure.layout.datarevision || 0) + 1;
}

function showCharts(news) {
  const charts = [...element.querySelectorAll('.chart')];
  for (const chart of charts) chart.hidden = !news.parts[chart.dataset.part];  // before drawing: it decides the width
  for (const chart of charts.filter(chart => !chart.hidden)) {
    const part = news.parts[chart.dataset.part], node = chart.querySelector('.plot');
    setText(chart.querySelector('.waiting'), part.waiting);
    if (part.figure) plot(node, part.figure);
    else if (node.figure && part.rows) { extend(node.figure, part.points); draw(node); }
  }
}

function side(name) {
  const box = el('div', 'answer ' + name);
  box.append(el('span', 'who', name === 'base' ? 'base' : 'PPO'), el('p', 'text'), el('div', 'mark'));
  return box;
}

function showCards() {
  const cards = $('.cards'), scores = samples.map(s => s.score).filter(s => s !== null);
  $('.pinned').hidden = !samples.length;
  if (!samples.length) return;
  const low = Math.min(...scores), high = Math.max(...scores);
  const at = steps[follow ? steps.length - 1 : +$('input').value];
  const first = samples.filter(s => s.step === steps[0]), now = samples.filter(s => s.step === at);
  first.forEach((before, i) => {
    let card = cards.children[i];
    if (!card) {
      card = el('article', 'card');
      card.append(el('h4'), side('base'), side('ppo'));
      cards.append(card);
    }
    setText(card.querySelector('h4'), before.prompt);
    const after = now.find(s => s.index === before.index) || before;
    for (const [name, sample] of [['base', before], ['ppo', after]]) {
      const box = card.querySelector('.' + name), print = JSON.stringify([before, sample, low, high]);
      if (box.print === print) continue;
      box.print = print;
      markChanges(box.querySelector('.text'), name === 'base' ? [[sample.response, false]] : sample.changes);
      box.querySelector('.mark').replaceChildren(scoreBar(sample.score, low, high));
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

function apply(news) {
  if (news.error) {
    clearInterval(timer);
    $('.verdict').dataset.tone = 'bad';
    return setText($('.verdict'), news.error);
  }
  const was = active;
  active = ACTIVE.includes(news.state);
  seen = news.seen;
  showState(news); showCharts(news); showSamples(news.samples);
  if (news.leave) showWaysOut(news.leave);
  if (!active) clearInterval(timer);
  if (was && !active) trigger('ended', {run});
}

function showWaysOut(leave) {
  texts = leave;
  $('.leave').hidden = false;
  setText($('.download'), 'Download run' + (leave.size < 0.1 ? '' : ', ' + megabytes(leave.size)));
}

const megabytes = size => number(size, size < 10 ? 1 : 0) + ' MB';

async function copy(text) {
  // Over plain http from another machine there is no clipboard, but a selection can be copied.
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const box = element.appendChild(el('textarea', '', text));
  box.select();
  const done = document.execCommand('copy');
  box.remove();
  if (!done) throw new Error();
}

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
    const link = el('a');
    link.href = 'gradio_api/file=' + file.path;
    link.download = file.name;
    link.click();
  } catch (error) {
    setText(message, 'The zip file could not be written; is the disk full?');
  } finally { button.disabled = false; }
});

async function tick() {
  if (!element.isConnected) return clearInterval(timer);
  if (busy || document.hidden) return;
  busy = true;
  const asked = run;
  try {
    const news = await server.poll({run, seen});
    if (asked === run) apply(news);
  } catch (error) {
    setText($('.clock'), 'No answer from the server; trying again');
  } finally { busy = false; }
  if (asked !== run) tick();
}

function attach() {
  if (props.value === run) return;
  reset(props.value);
  clearInterval(timer);
  timer = setInterval(tick, 1000);
  tick();
}

$('input').addEventListener('input', event => {
  follow = +event.target.value === steps.length - 1;
  showCards();
});
watch('value', attach);
attach();
