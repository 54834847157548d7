const settings = {responsive: true, displaylogo: false, displayModeBar: false};
const detail = document.getElementById("detail");

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function pairs(rows, open) {
  const list = element("dl");
  for (const [name, value] of rows) list.append(element("dt", name), element("dd", value));
  return list;
}

function tiles(report, trial) {
  const grid = element("div", undefined, "tiles");
  report.trials[trial].tiles.forEach(([left, top], index) => {
    const figure = element("figure"), tile = element("div", undefined, `tile ${report.id}t${trial}`);
    tile.style.backgroundPosition = `-${left}px -${top}px`;
    tile.setAttribute("role", "img");
    tile.setAttribute("aria-label", `${report.captions[index]}, drawn by trial ${trial}`);
    figure.append(tile, element("figcaption", report.captions[index]));
    grid.append(figure);
  });
  return grid;
}

let held; // the trial that the next one is compared with, and its report

function show(report, trial) {
  trial = Number(trial);
  const found = report.trials[trial];
  if (!found) return;
  const first = held && held.report === report && held.trial !== trial ? held.trial : undefined;
  held = undefined;
  document.querySelectorAll(".lit").forEach(part => part.classList.remove("lit"));
  for (const one of [first, trial]) report.article.querySelectorAll(`[data-trial="${one}"]`).forEach(part => part.classList.add("lit"));
  if (first !== undefined) compare(report, [first, trial]);
  else alone(report, trial, found);
}

function alone(report, trial, found) {
  const body = detail.querySelector("div");
  body.replaceChildren(element("h3", `Trial ${trial}: ${found.state}`));
  if (found.reason) body.append(element("p", found.reason, "note"));
  body.append(pairs(found.scores));
  if (found.tiles.length) body.append(tiles(report, trial));
  else body.append(element("p", "Its pictures are not in this page: trials/" + String(trial).padStart(4, "0") + "/samples.png, if it was trained.", "note"));
  body.append(pairs(found.choices));
  if (found.parts.length) body.append(element("h4", "Multiply-adds by resolution"), costs(report, trial, longest(report, [trial])), legend(report, [trial]));
  const other = element("p", undefined, "choosing"), button = element("button", "Compare with another trial");
  button.addEventListener("click", () => { held = {report, trial}; button.replaceWith(element("b", "Click the other trial, in a figure or a table.")); });
  other.append(button);
  body.append(other, element("code", `nas export ${report.path} --pick trial:${trial}`));
  opened(`#${report.id}trial=${trial}`);
}

function opened(address) {
  detail.querySelector("div").scrollTop = 0;
  detail.hidden = false;
  history.replaceState(null, "", address);
}

function close() {
  held = undefined;
  detail.hidden = true;
  document.querySelectorAll(".lit").forEach(part => part.classList.remove("lit"));
  history.replaceState(null, "", location.pathname + location.search);
}

// What `packed` of nas/report/page.py put into a script element: gzip as base64.
async function unpacked(script) {
  const letters = atob(script.textContent), bytes = new Uint8Array(letters.length);
  for (let place = 0; place < letters.length; place++) bytes[place] = letters.charCodeAt(place);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

let library; // begins when the page can be read, for it takes longer than all the rest
function plotly() {
  const packed = document.getElementById("plotly");
  library ??= unpacked(packed).then(text => packed.replaceWith(element("script", text)));
  return library;
}

async function figure(report, plot) {
  await plotly();
  const {data, layout} = report.figures[plot.id];
  await Plotly.newPlot(plot, data, layout, settings);
  plot.on("plotly_click", click => { const trial = click.points[0].customdata; if (trial !== undefined) show(report, trial); });
}

// Draws what was not drawn yet, and lets the points follow what is chosen.
async function draw(report, plot) {
  await (plot.drawing ??= (plot.matches(".crossed") ? crossed : figure)(report, plot));
  dim(report, plot);
}

function begin(report) {
  const plots = [...report.article.querySelectorAll(".plot, .crossed")], lines = report.article.querySelector(".coordinates");
  report.near = new Set();
  const seen = new IntersectionObserver(entries => entries.forEach(({isIntersecting, target}) => {
    report.near[isIntersecting ? "add" : "delete"](target);
    if (isIntersecting) draw(report, target);
  }), {rootMargin: "400px"});
  plots.forEach(plot => seen.observe(plot));
  report.article.addEventListener("click", click => {
    const part = click.target.closest("[data-trial]");
    if (part) show(report, part.dataset.trial);
  });
  window.addEventListener("beforeprint", () => plots.forEach(plot => draw(report, plot)));
  if (lines) coordinates(report, lines);
}

let reports = [];
async function start() {
  const read = async article => Object.assign(JSON.parse(await unpacked(article.querySelector("script"))), {article, id: article.dataset.id});
  reports = await Promise.all([...document.querySelectorAll("article")].map(read));
  reports.forEach(begin);
  follow();
  requestAnimationFrame(() => setTimeout(plotly));
}

function follow() {
  const [, id, trial, other] = location.hash.match(/^#(.*?)trial=(\d+)(?:&with=(\d+))?$/) || [];
  const report = reports.find(one => one.id === id);
  if (!report || !report.trials) return;
  if (other !== undefined) held = {report, trial: Number(trial)};
  show(report, other === undefined ? trial : other);
}
detail.querySelector("button").addEventListener("click", close);
document.addEventListener("keydown", key => { if (key.key === "Escape") close(); });
window.addEventListener("hashchange", follow);
if ("DecompressionStream" in window) start();
else document.querySelector("main").prepend(element("p", "This browser is too old for the figures: Chrome 80, Firefox 113, Safari 16.4 or later has them.", "warn"));
