// What a person must know about the form: beside the field it is about, else below the buttons.
// Gradio gives this script element, props and watch.
const note = element.querySelector('.note');
let marked = null, edited = null;

function clear() {
  note.hidden = true;
  document.querySelectorAll('.field-note').forEach(node => node.remove());
  if (!marked) return;
  marked.removeAttribute('aria-invalid');
  marked.removeAttribute('aria-describedby');
  marked.removeEventListener('input', edited);
  marked = null;
}

async function found(id) {
  const shown = () => document.getElementById(id)?.offsetParent ? document.getElementById(id) : null;
  // It may be folded away; the fields under Advanced are made when that is first opened.
  const rewards = document.getElementById(id)?.closest('.rewards');
  const folds = rewards ? rewards.querySelectorAll('button') : document.querySelectorAll('.advanced button');
  if (!shown()) [...folds].find(button => button.offsetParent)?.click();
  for (let i = 0; i < 40 && !shown(); i++) await new Promise(later => setTimeout(later, 50));
  return shown();
}

async function show() {
  clear();
  const {text, field, run} = props.value || {};
  if (!text) return;
  if (field) document.querySelector('.train').classList.remove('folded');
  const place = field && await found(field);
  if (!place) {
    // The run that is in the way is named with a link.
    const [before, after] = run ? [text.split(run.title)[0], text.split(run.title).slice(1).join(run.title)] : [text, ''];
    const link = run ? Object.assign(window.lab.el('a', '', run.title), {href: '?run=' + encodeURIComponent(run.id)}) : '';
    note.replaceChildren(before, link, after);
    note.hidden = false;
    return;
  }
  const beside = window.lab.el('p', 'note field-note', text);
  beside.id = 'field-note';
  beside.setAttribute('role', 'alert');
  place.append(beside);
  marked = place.querySelector('input, textarea, select');
  marked.setAttribute('aria-invalid', 'true');
  marked.setAttribute('aria-describedby', beside.id);
  edited = clear;
  marked.addEventListener('input', edited);
  place.scrollIntoView({block: 'center'});
  marked.focus({preventScroll: true});
}
watch('value', show);
show();
