// Questions, answers side by side, and votes. Gradio gives element, props, server, watch and trigger.
const {el, setText, scoreBar, number, copy, request, outbox, inSight, onKeys, showTiles} = window.lab;
const $ = selector => element.querySelector(selector);
const LETTERS = ['A', 'B', 'C', 'D'];
let votes = {};        // what was voted, and whose the answers are, by a turn's id
let open = new Set();  // ids of turns that can be voted on
let closed = {};       // why others cannot any more
let sent = new Set();  // and of those whose vote is on its way

function button(cls, text, act, key) {
  const node = el('button', cls, text);
  node.type = 'button';
  if (key !== undefined) node.append(' ', el('kbd', '', key));
  node.addEventListener('click', act);
  return node;
}

function answerNode(letter) {
  const box = el('div'), head = el('header');
  box.append(head, el('p', 'text'), el('div', 'mark'), el('p', 'gloss by'));
  head.append(el('span', 'who', letter), button('plain copy', 'Copy', async event => {
    try { await copy(box.querySelector('.text').textContent); setText(event.target, 'Copied'); }
    catch { setText(event.target, 'Copying failed'); }
    setTimeout(() => setText(event.target, 'Copy'), 1500);
  }));
  box.querySelector('.text').dir = 'auto';
  return box;
}

function turnNode() {
  const node = el('article', 'turn'), foot = el('div', 'foot'), choices = el('span', 'choices');
  choices.role = 'group';
  choices.ariaLabel = 'Your vote';
  foot.append(choices, el('span', 'gloss result'),
    button('plain undo', 'Undo', () => box.post('take_back', {id: node.turn.id}, take)),
    el('span', 'gloss asked'), button('plain again', 'Regenerate', () => trigger('regenerate')));
  node.append(el('h3'), el('div', 'pair'), foot);
  node.firstChild.dir = 'auto';
  return node;
}

// The buttons of a turn, anew when another number of models has answered.
function showChoices(node, count) {
  const choices = node.querySelector('.choices');
  if (choices.childElementCount === count + 1) return;
  choices.replaceChildren(
    ...LETTERS.slice(0, count).map((letter, i) => button('', letter + (count > 2 ? ' is best' : ' is better'),
      () => vote(node.turn, letter.toLowerCase()), i + 1)),
    button('', 'Tie', () => vote(node.turn, 'tie'), 0));
}

function showTurn(node, turn, isLast) {
  const pair = node.querySelector('.pair'), voted = votes[turn.id], done = turn.answers.every(answer => answer.done);
  node.turn = turn;
  setText(node.querySelector('h3'), turn.question);
  while (pair.childElementCount > turn.answers.length) pair.lastChild.remove();
  turn.answers.forEach((told, i) => {
    const box = pair.children[i] ?? pair.appendChild(answerNode(LETTERS[i]));
    const letter = LETTERS[i].toLowerCase(), answer = {...told, ...voted?.sides[letter]};
    box.className = 'answer ' + (['base', 'ppo'].includes(answer.name) ? answer.name : 'other');
    box.classList.toggle('writing', !answer.done);
    box.classList.toggle('chosen', voted?.choice === letter);
    setText(box.querySelector('.who'), LETTERS[i] + (answer.who ? ' \u00b7 ' + answer.who : ''));
    setText(box.querySelector('.text'), answer.text);
    setText(box.querySelector('.by'), answer.by ?? '');
    if (answer.score === box.score && box.done === answer.done) return;
    box.score = answer.score; box.done = answer.done;
    const parts = (answer.parts || []).map(([name, weight, given]) => name + ' '
      + (given === null ? 'none' : number(given))
      + (weight === 1 ? '' : ' \u00d7 ' + String(weight).replace('-', '\u2212')));
    box.querySelector('.mark').replaceChildren(scoreBar(answer.score, ...props.value.scale),
      ...(parts.length ? [el('p', 'gloss parts', parts.join(' \u00b7 '))] : []));
  });
  const canVote = open.has(turn.id) && !voted && !sent.has(turn.id);
  showChoices(node, turn.answers.length);
  node.querySelector('.choices').hidden = !canVote;
  const best = voted?.sides[voted.choice], choice = best ? voted.choice.toUpperCase() + ', ' + best.who : 'a tie';
  setText(node.querySelector('.result'), voted ? 'You voted for ' + choice + '.' : turn.closed ?? closed[turn.id] ?? '');
  node.querySelector('.undo').hidden = !voted || voted.blind;
  setText(node.querySelector('.asked'), turn.asked);
  node.querySelector('.again').hidden = !isLast || !done;
}

function show() {
  const value = props.value;
  if (!value) return;
  setText($('.verdict'), value.sentence);
  const turns = $('.turns'), atEnd = turns.scrollHeight - turns.scrollTop - turns.clientHeight < 40;
  while (turns.childElementCount > value.turns.length) turns.lastChild.remove();
  turns.classList.toggle('empty', !value.turns.length);
  value.turns.forEach((turn, i) => {
    showTurn(turns.children[i] ?? turns.appendChild(turnNode()), turn, i === value.turns.length - 1);
  });
  if (atEnd) turns.scrollTop = turns.scrollHeight;
}

// Votes
const call = (name, details) => request(server, name, {run: props.value.run, visitor: props.value.visitor, ...details});
const box = outbox(element, call, text => setText($('.saved'), text));

function take(answer) {
  sent = new Set();
  Object.assign(votes, answer.votes);
  if (answer.open) [open, closed] = [new Set(answer.open), answer.closed];
  const stands = document.querySelector('#votes .votes');
  if (stands && answer.tiles) {
    showTiles(stands.querySelector('dl'), answer.tiles);
    setText(stands.querySelector('.rule'), answer.rule);
    stands.hidden = !answer.tiles.length;
  }
  show();
}

function vote(turn, choice) {
  sent.add(turn.id);
  show();
  box.post('vote', {id: turn.id, choice}, take);
}

onKeys(element, {1: 'a', 2: 'b', 3: 'c', 4: 'd', 0: 'tie'}, choice => {
  const turn = props.value.turns.findLast(turn => open.has(turn.id) && !votes[turn.id] && !sent.has(turn.id));
  if (turn && (choice === 'tie' || 'abcd'.indexOf(choice) < turn.answers.length)) vote(turn, choice);
});

async function look() {
  if (!props.value?.run || box.busy || !inSight(element)) return;
  const of = props.value.run, ids = props.value.turns.map(turn => turn.id).filter(Boolean);
  const answer = await call('look', {ids}).catch(() => ({}));  // the next look comes soon
  if (of === props.value.run && !box.busy) take(answer);
}
// In between, other people vote.
const timer = setInterval(() => element.isConnected ? look() : clearInterval(timer), 5000);

// A question that is too long says so while it is written.
document.addEventListener('input', function count(event) {
  if (!element.isConnected) return document.removeEventListener('input', count);
  const hint = document.querySelector('#room p'), limit = props.value?.longest;
  if (!event.target.matches('#question textarea') || !hint || !limit) return;
  const length = event.target.value.trim().length, most = limit.toLocaleString('en');
  hint.classList.toggle('over', length > limit);
  hint.textContent = length > 0.8 * limit ? length.toLocaleString('en') + ' of about ' + most + ' characters'
    + (length > limit ? ': probably too long' : '') : 'A question may have up to about ' + most + ' characters.';
});

let latest = '';
watch('value', () => {
  show();
  if (!props.value) return;
  const turns = $('.turns'), now = [props.value.run, ...props.value.turns.map(turn => turn.id)].join();
  turns.scrollTop = turns.scrollHeight;
  if (now === latest) return;
  latest = now;
  setText($('.saved'), '');
  look();
});
show();
look();
