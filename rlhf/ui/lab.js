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
  const waiting = wanted && setInterval(() => {
    const tab = tabs().find(tab => named(tab) === wanted);
    if (tab || document.readyState === 'complete' && tabs().length) clearInterval(waiting);
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
  return {el, setText, plot, draw, markChanges, scoreBar, number, clock, address, download};
})();
