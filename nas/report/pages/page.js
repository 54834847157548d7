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

function draw(report, plot) {
  if (plot.dataset.drawn) return;
  plot.dataset.drawn = "yes";
  const figure = report.figures[plot.id];
  Plotly.newPlot(plot, figure.data, figure.layout, settings).then(() => {
    plot.on("plotly_click", click => { const trial = click.points[0].customdata; if (trial !== undefined) show(report, trial); });
    if (report.kept) dim(report, plot);
  });
}

const reports = [...document.querySelectorAll("article")].map(article => {
  const report = JSON.parse(article.querySelector("script").textContent);
  return Object.assign(report, {article, id: article.dataset.id});
});

for (const report of reports) {
  const plots = [...report.article.querySelectorAll(".plot")];
  const seen = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => draw(report, entry.target)), {rootMargin: "400px"});
  plots.forEach(plot => seen.observe(plot));
  report.article.querySelectorAll("tr[data-trial], th[data-trial], td[data-trial]").forEach(part =>
    part.addEventListener("click", () => show(report, part.dataset.trial)));
  window.addEventListener("beforeprint", () => plots.forEach(plot => draw(report, plot)));
  const lines = report.article.querySelector(".coordinates"), crossing = report.article.querySelector(".crossed");
  if (lines) coordinates(report, lines);
  if (crossing) new IntersectionObserver((entries, seer) => {
    if (entries.some(entry => entry.isIntersecting)) { seer.disconnect(); crossed(report, crossing); }
  }, {rootMargin: "400px"}).observe(crossing);
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
follow();
