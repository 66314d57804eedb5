// What the scripts of all tabs share. live.py puts in the colours of figures with their twins on the dark page.
window.lab = (() => {
  const twins = __TWINS__;
  const isDark = () => document.body.classList.contains('dark');
  const el = (tag, cls, text) => {
    const node = document.createElement(tag);
    if (cls) node.className = cls;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const repaint = (figure, dark) => {
    let text = JSON.stringify(figure);
    for (const [light, twin] of twins) text = text.replaceAll(dark ? light : twin, dark ? twin : light);
    return JSON.parse(text);
  };
  const save = format => ({
    name: 'Save as ' + format.toUpperCase(), icon: Plotly.Icons.disk,
    click: node => Plotly.downloadImage(node, {format, filename: 'rlhf-lab', scale: format === 'png' ? 2 : 1}),
  });
  // One object for all figures and times: Plotly builds a figure anew when its config is another.
  let config;
  const draw = node => Plotly.react(node, node.figure.data, node.figure.layout, config ??= {
    displaylogo: false, responsive: true, scrollZoom: false,
    modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d', 'zoomIn2d', 'zoomOut2d', 'toImage'],
    modeBarButtonsToAdd: [save('png'), save('svg')],
  });
  // Plotly follows the window only; a figure also changes size with its neighbours, or when its tab is opened.
  const fit = new ResizeObserver(changes => {
    for (const {target} of changes) if (target.offsetParent && target.layout) Plotly.Plots.resize(target);
  });
  const plot = async (node, figure) => {
    node.figure = repaint(figure, isDark());
    node.classList.add('drawn');
    await draw(node);
    fit.observe(node);
  };
  new MutationObserver(() => {
    for (const node of document.querySelectorAll('.drawn')) {
      node.figure = repaint(node.figure, isDark());
      draw(node);
    }
  }).observe(document.body, {attributeFilter: ['class']});

  const plain = word => word.toLowerCase().replace(/[^a-z0-9']/g, '');
  // Fills a node with `after`, the words that `before` does not have at that place marked.
  const markChanges = (node, before, after) => {
    const a = before.split(/\s+/), b = after.split(/\s+/);
    const best = Array.from({length: a.length + 1}, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        best[i][j] = plain(a[i]) === plain(b[j]) ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    node.replaceChildren();
    let i = 0, run = [], changed = false;
    const flush = () => {
      if (run.length) node.append(changed ? el('mark', '', run.join(' ')) : run.join(' '), ' ');
      run = [];
    };
    for (let j = 0; j < b.length; j++) {
      while (i < a.length && plain(a[i]) !== plain(b[j]) && best[i + 1][j] >= best[i][j + 1]) i++;
      const same = i < a.length && plain(a[i]) === plain(b[j]);
      if (same) i++;
      if (changed === same) { flush(); changed = !same; }
      run.push(b[j]);
    }
    flush();
  };
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
  return {el, plot, draw, markChanges, scoreBar, number, clock};
})();
