// The teacher's tab. Gradio gives this script element, props, server and watch.
const {el, setText, download, inSight} = window.lab;
const $ = selector => element.querySelector(selector);
let news = null, print = '';

async function act(name, details = {}) {
  try {
    const answer = await server[name]({run: props.value, ...details});
    setText($('.done'), answer.error ?? answer.said);
    if (!answer.error) take(answer);
  } catch { setText($('.done'), 'The server does not answer; try again.'); }
}

function take(answer) {
  news = answer;
  setText($('.verdict'), news.verdict);
  setText($('.shown'), news.shown);
  setText($('.show'), news.show || 'Everybody sees the run chosen above');
  $('.show').disabled = !news.show;
  $('.release').hidden = !news.is_shown;
  setText($('.standing'), news.everything);
  const now = JSON.stringify([news.locks, news.queue]);
  if (now === print) return;  // what is being pressed stays where it is
  print = now;
  $('.locks').replaceChildren(...news.locks.map(lockNode));
  $('.queue ol').replaceChildren(...news.queue.map(runNode));
  $('.queue .none').hidden = news.queue.length;
}

function lockNode({name, label: [title, about], on}) {
  const item = el('li'), label = el('label'), box = Object.assign(el('input'), {type: 'checkbox', checked: on});
  box.addEventListener('change', () => act('lock', {lock: name, on: box.checked}));
  label.append(box, el('b', '', title), el('span', 'gloss', about));
  item.append(label);
  return item;
}

function button(text, label, run, does) {
  const node = Object.assign(el('button', '', text), {type: 'button'});
  if (does) node.addEventListener('click', does); else node.disabled = true;
  node.setAttribute('aria-label', label + ' ' + run.title);
  return node;
}

function runNode(run, at) {
  const item = el('li'), waiting = news.queue.filter(other => other.waits), place = waiting.indexOf(run);
  const move = places => () => act('move_run', {id: run.id, places});
  item.append(el('b', '', run.title), el('span', 'gloss', run.about));
  if (run.waits)
    item.append(button('\u2191', 'Move up', run, place > 0 && move(-1)),
      button('\u2193', 'Move down', run, place < waiting.length - 1 && move(1)));
  item.append(button('Stop', 'Stop', run, () => act('stop_run', {id: run.id})));
  return item;
}

$('.show').addEventListener('click', () => act('show_to_all', {show: props.value}));
$('.release').addEventListener('click', () => act('show_to_all', {show: null}));

$('.download').addEventListener('click', async ({target}) => {
  target.disabled = true;
  setText($('.done'), 'Packing\u2026');
  try {
    const file = await server.download({});
    setText($('.done'), file.error ?? '');
    if (!file.error) download(file);
  } catch { setText($('.done'), 'The file could not be made; is the disk full?'); }
  target.disabled = false;
});

// Clearing asks once more, in place.
const unsure = () => { $('.sure').hidden = true; };
$('.clear').addEventListener('click', () => {
  setText($('.sure span'), news.sure);
  $('.sure').hidden = false;
  $('.sure .no').focus();
});
$('.sure .no').addEventListener('click', unsure);
$('.sure .yes').addEventListener('click', () => { unsure(); act('clear_class'); });

async function look() {
  if (!inSight(element)) return;
  const answer = await server.look({run: props.value}).catch(() => null);  // the next look comes soon
  if (answer && !answer.error) take(answer);
}
document.addEventListener('class', function hear() {
  if (!element.isConnected) return document.removeEventListener('class', hear);
  look();
});
watch('value', look);
look();
