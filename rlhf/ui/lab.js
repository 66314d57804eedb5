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
      displaylogo: false, responsive: true, scrollZoom: false, showSendToCloud: false,
      modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d', 'zoomIn2d', 'zoomOut2d', 'toImage'],
      modeBarButtonsToAdd: [save('png'), save('svg')],
    });
  };
  // Plotly follows the window only; a figure also changes size with its neighbours, or when its tab is opened.
  const fit = new ResizeObserver(changes => {
    for (const {target} of changes) if (target.offsetParent && target.layout) Plotly.Plots.resize(target);
  });
  // One stop of the Tab key for a figure's tools, arrows between them, as WAI-ARIA has it for a toolbar.
  const toolbar = node => {
    const bar = node.querySelector('.modebar');
    if (!bar || bar.toolbar) return;
    bar.toolbar = true;
    bar.setAttribute('role', 'toolbar');
    bar.setAttribute('aria-label', 'Tools of this figure');
    const tools = [...bar.querySelectorAll('.modebar-btn')];
    const stop = at => tools.forEach((tool, i) => { tool.tabIndex = i === at ? 0 : -1; });
    stop(0);
    bar.addEventListener('keydown', event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      const at = (tools.indexOf(document.activeElement) + step + tools.length) % tools.length;
      event.preventDefault();
      stop(at);
      tools[at].focus();
    });
  };
  const plot = async (node, figure) => {
    node.figure = figure;
    node.classList.add('drawn');
    await draw(node);
    toolbar(node);
    fit.observe(node);
  };
  new MutationObserver(() => document.querySelectorAll('.drawn').forEach(draw))
    .observe(document.body, {attributeFilter: ['class']});

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
  return {el, setText, plot, draw, markChanges, scoreBar, number, clock, address};
})();
