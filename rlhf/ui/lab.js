// What the scripts of all tabs share.
window.lab = (() => {
  const DARK = __DARK__;  // each colour of the figures -> its twin on the dark page
  const el = (tag, cls, text) => {
    const node = document.createElement(tag);
    if (cls) node.className = cls;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const setText = (node, text) => { if (node.textContent !== text) node.textContent = text; };

  // A figure in the colours of the dark page. Only what stands under a key such as `linecolor` is a colour; a word or
  // an answer that looks like one is left alone.
  const darken = (value, key = '') => {
    if (Array.isArray(value)) return value.map(item => darken(item, key));
    if (value && typeof value === 'object')
      return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, darken(inner, name)]));
    return /(color|shadow)$/.test(key) ? DARK[value] ?? value : value;
  };
  const save = format => ({
    name: 'Save as ' + format.toUpperCase(), icon: Plotly.Icons.disk,
    click: node => Plotly.downloadImage(node, {format, filename: 'rlhf-lab', scale: format === 'png' ? 2 : 1}),
  });
  // One object for all figures and times: Plotly builds a figure anew when its config is another.
  let config;
  const draw = node => {
    const {data, layout} = document.body.classList.contains('dark') ? darken(node.figure) : node.figure;
    return Plotly.react(node, data, layout, config ??= {
      displaylogo: false, responsive: true, scrollZoom: false,
      showSendToCloud: false, plotlyServerURL: '',  // "Share chart" would upload it
      modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d', 'zoomIn2d', 'zoomOut2d', 'toImage'],
      modeBarButtonsToAdd: [save('png'), save('svg')],
    });
  };
  // Plotly follows the window only; a figure also changes size with its neighbours, or when its tab is opened.
  const fit = new ResizeObserver(changes => {
    for (const {target} of changes) if (target.offsetParent && target.layout) Plotly.Plots.resize(target);
  });
  const plot = async (node, figure) => {
    node.figure = figure;
    node.classList.add('drawn');
    await draw(node);
    describe(node);
    fit.observe(node);
  };
  // A figure has its headings for a name, and its tools are one stop of the Tab key, as in any toolbar.
  const describe = node => {
    const words = node.figure.layout.annotations?.map(note => note.text.replaceAll(/<[^>]*>/g, ' ')) ?? [];
    node.setAttribute('role', 'figure');
    node.setAttribute('aria-label', words.join('; ').replaceAll(/\s+/g, ' ').trim() || 'A figure');
    node.querySelectorAll('.main-svg').forEach(svg => svg.setAttribute('aria-hidden', true));
    node.querySelector('.modebar')?.setAttribute('role', 'toolbar');
    node.querySelector('.modebar')?.setAttribute('aria-label', 'Tools of the figure');
    node.querySelectorAll('.modebar-btn').forEach((button, i) => { button.tabIndex = i ? -1 : 0; });
  };
  document.addEventListener('keydown', event => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key], bar = event.target.closest('.modebar');
    if (!step || !bar) return;
    const buttons = [...bar.querySelectorAll('.modebar-btn')], at = buttons.indexOf(event.target);
    const next = buttons.at((at + step) % buttons.length);
    [event.target.tabIndex, next.tabIndex] = [-1, 0];
    next.focus();
    event.preventDefault();
  });
  new MutationObserver(() => document.querySelectorAll('.drawn').forEach(draw))
    .observe(document.body, {attributeFilter: ['class']});

  // A link to a place on this page: by itself it would lead away, since Gradio's page has a base address.
  document.addEventListener('click', event => {
    const link = event.target.closest('a[href^="#"]');
    if (!link) return;
    event.preventDefault();
    const place = document.querySelector(link.getAttribute('href'));
    place.tabIndex = -1;
    place.focus({preventScroll: true});
    place.scrollIntoView({behavior: 'smooth'});
  });

  // Fills a node with runs of [text, whether its words are new].
  const markChanges = (node, runs) =>
    node.replaceChildren(...runs.map(([text, isNew]) => isNew ? el('mark', '', text) : text));
  const number = (value, digits = 2) => value.toFixed(digits).replace('-', '\u2212');
  const scoreBar = (value, low, high, label = 'score') => {
    const box = el('span', 'score');
    if (value === null || value === undefined) return box;
    const bar = el('span', 'bar'), fill = el('span', 'fill');
    fill.style.width = Math.max(2, Math.min(100, 100 * (value - low) / (high - low || 1))) + '%';
    bar.append(fill);
    box.append(el('span', 'what', label), el('b', '', number(value)), bar);
    return box;
  };
  const clock = seconds => {
    const s = Math.max(0, Math.round(seconds)), h = Math.floor(s / 3600), m = Math.floor(s % 3600 / 60);
    return (h ? h + ':' + String(m).padStart(2, '0') : m) + ':' + String(s % 60).padStart(2, '0');
  };
  // The address names the shown run and tab, so that a link can be sent and a reload comes back to the same place.
  const address = changes => {
    const url = new URL(location);
    for (const [name, value] of Object.entries(changes)) value ? url.searchParams.set(name, value) : url.searchParams.delete(name);
    if (url.href !== location.href) history.replaceState(history.state, '', url);
  };
  // Have the browser save a file that the server has made.
  const download = file => {
    const link = el('a');
    link.href = 'gradio_api/file=' + file.path;
    link.download = file.name;
    link.click();
  };
  const tabs = () => [...document.querySelectorAll('#tabs [role="tab"]')];
  const named = tab => tab.textContent.trim().toLowerCase();
  const wanted = new URL(location).searchParams.get('tab');
  let looks = 0;
  const waiting = wanted && setInterval(() => {
    const tab = tabs().find(tab => named(tab) === wanted);
    if (tab || tabs().length && ++looks > 300) clearInterval(waiting);  // the teacher's tab comes later than the others
    if (tab) tab.click();
  }, 50);
  document.addEventListener('click', event => {
    const tab = event.target.closest?.('#tabs [role="tab"]');
    if (tab) address({tab: named(tab)});
  });
  document.addEventListener('keyup', () => {
    const tab = document.activeElement.closest('#tabs [role="tab"][aria-selected="true"]');
    if (tab) address({tab: named(tab)});
  });
  // Gradio opens a list at any key, also at the Tab that leaves it.
  document.addEventListener('keydown', event => {
    if (event.key === 'Tab' && event.target.matches?.('[role="combobox"]')) event.stopPropagation();
  }, true);
  const copy = async text => {
    // Over plain http from another machine there is no clipboard, but a selection can be copied.
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const box = document.body.appendChild(el('textarea', '', text));
    box.select();
    const done = document.execCommand('copy');
    box.remove();
    if (!done) throw new Error();
  };

  // What people choose, in Feedback and in Chat
  const PATIENCE = 15000;   // milliseconds after which a request counts as lost
  const wait = time => new Promise(done => setTimeout(done, time));
  // Gradio answers undefined where the server could not be reached or failed.
  const request = async (server, name, details) => {
    const answer = await Promise.race([server[name](details), wait(PATIENCE)]);
    if (!answer) throw new Error('The server does not answer.');
    if (answer.again) throw new Error(answer.again);
    return answer;
  };
  // Choices are sent in order, each until `call` brings the server's acknowledgement.
  const outbox = (element, call, say, failed) => {
    const box = {letters: [], busy: false, failures: 0};
    box.post = async (...letter) => {
      box.letters.push(letter);
      if (box.busy) return;
      box.busy = true;
      while (box.letters.length) {
        const [name, details, then] = box.letters[0];
        try {
          const answer = await call(name, details);
          box.letters.shift();
          box.failures = 0;
          then?.(answer);
          say(answer.refused || answer.said || '');
        } catch (error) {
          box.failures += 1;
          const n = box.letters.length;
          say(error.message + ' ' + (n === 1 ? 'Your last choice is' : 'Your last ' + n + ' choices are')
            + ' not saved yet: leave this page open, it goes on trying.');
          failed?.();
          await wait(Math.min(4000, 250 * 2 ** box.failures));
        }
      }
      box.busy = false;
    };
    addEventListener('beforeunload', event => { if (element.isConnected && box.letters.length) event.preventDefault(); });
    return box;
  };
  const inSight = element => element.offsetParent !== null && !document.hidden;
  // Keys choose while `element` is in sight and nobody types.
  const onKeys = (element, keys, act) => document.addEventListener('keydown', function key(event) {
    if (!element.isConnected) return document.removeEventListener('keydown', key);
    const choice = keys[event.key.toLowerCase()], at = document.activeElement;
    if (!choice || !inSight(element) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (at.matches('input:not([type="radio"], [type="checkbox"]), textarea, select, [contenteditable]')) return;
    // On a button, a link or a switch the space key presses it; on the tab that is open it would do nothing.
    if (event.key === ' ' && at.matches('button, a, summary, input') && !at.matches('[role="tab"]')) return;
    event.preventDefault();
    if (!event.repeat) act(choice);
  });
  // Tiles of [label, value, what it says].
  const showTiles = (list, tiles) => {
    while (list.childElementCount > tiles.length) list.lastChild.remove();
    while (list.childElementCount < tiles.length) {
      const tile = list.appendChild(el('div'));
      tile.append(el('dt'), el('dd', 'value'), el('dd', 'gloss'));
    }
    tiles.forEach((texts, i) => texts.forEach((text, j) => setText(list.children[i].children[j], text)));
  };
  return {el, setText, plot, draw, markChanges, scoreBar, number, clock, address, download, copy, request, outbox,
    inSight, onKeys, showTiles};
})();
