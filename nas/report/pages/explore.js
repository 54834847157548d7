"use strict";
const WIDE = 80, HIGH = 300, TOP = 14, LEFT = 34, LINE = 14, NEAR = 0.021, REST = 120;

const holder = document.createElement("div");
holder.innerHTML = "<svg></svg>";

function drawing(name, attributes, text) {
  const made = document.createElementNS(holder.firstChild.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// --- parallel coordinates: ranges of axes choose trials ----------------------------------------------------------------

function coordinates(report, place) {
  const {axes, lines} = report.parallel, ranges = axes.map(() => null);
  const deepest = Math.max(...axes.map(axis => axis.name.length)), width = LEFT + WIDE * axes.length;
  const svg = drawing("svg", {width, height: TOP + HIGH + LINE * (deepest + 1), viewBox: `0 0 ${width} ${TOP + HIGH + LINE * (deepest + 1)}`});
  const x = index => LEFT + WIDE * index, y = height => TOP + HIGH * (1 - height);
  const rank = trial => ["stopped", "complete", "front", "knee"].indexOf(report.trials[trial].kind);
  for (const trial of Object.keys(lines).sort((one, other) => rank(one) - rank(other))) {
    const path = drawing("path", {d: "M" + lines[trial].map((height, index) => `${x(index)} ${y(height)}`).join("L"), class: report.trials[trial].kind, "data-trial": trial});
    path.append(drawing("title", {}, `trial ${trial}`));
    svg.append(path);
  }
  const brushes = axes.map((axis, index) => {
    svg.append(drawing("line", {x1: x(index), x2: x(index), y1: TOP, y2: TOP + HIGH}));
    for (const [height, text] of axis.ticks) svg.append(drawing("text", {x: x(index) + 5, y: y(height) + 4, class: "tick"}, text));
    axis.name.forEach((part, row) => svg.append(drawing("text", {x: x(index), y: TOP + HIGH + LINE * (row + 1.3), class: "name"}, part)));
    const brush = drawing("rect", {x: x(index) - 6, width: 12, y: 0, height: 0, class: "brush"});
    const handle = drawing("rect", {x: x(index) - 12, width: 24, y: TOP - 10, height: HIGH + 20, class: "handle", "data-axis": index});
    svg.append(brush, handle);
    drag(handle, svg, range => { ranges[index] = range; filter(); });
    return brush;
  });

  function drag(handle, on, set) {
    const at = event => Math.min(1, Math.max(0, 1 - (event.clientY - on.getBoundingClientRect().top - TOP) / HIGH));
    handle.addEventListener("pointerdown", down => {
      const from = at(down);
      const move = event => set([Math.min(from, at(event)), Math.max(from, at(event))]);
      const up = event => {
        handle.removeEventListener("pointermove", move);
        report.article.classList.remove("dragging");
        if (Math.abs(at(event) - from) < 0.01) set(null);
      };
      handle.setPointerCapture(down.pointerId);
      report.article.classList.add("dragging"); // what is out of sight is not painted meanwhile
      handle.addEventListener("pointermove", move);
      handle.addEventListener("pointerup", up, {once: true});
    });
  }

  place.append(svg);
  const parts = new Map(Object.keys(lines).map(trial => [trial, []]));
  report.article.querySelectorAll("[data-trial]").forEach(part => parts.get(part.dataset.trial)?.push(part));
  const controls = report.article.querySelector(".choosing"), stopped = controls.querySelector("input");
  let kept = new Set(parts.keys()), settling;
  function filter() {
    const before = kept;
    kept = new Set([...parts.keys()].filter(trial =>
      (stopped.checked || report.trials[trial].kind !== "stopped") &&
      ranges.every((range, index) => !range || (lines[trial][index] >= range[0] - NEAR && lines[trial][index] <= range[1] + NEAR))));
    ranges.forEach((range, index) => {
      brushes[index].setAttribute("y", range ? y(range[1]) : 0);
      brushes[index].setAttribute("height", range ? HIGH * (range[1] - range[0]) : 0);
    });
    controls.querySelector("output").textContent = `${kept.size} of ${parts.size} trained trials`;
    for (const [trial, own] of parts) if (before.has(trial) !== kept.has(trial)) own.forEach(part => part.classList.toggle("out", !kept.has(trial)));
    report.kept = kept.size === parts.size ? null : kept;
    clearTimeout(settling);
    settling = setTimeout(() => report.near.forEach(plot => draw(report, plot)), REST);
  }
  stopped.addEventListener("change", filter);
  controls.querySelector("button").addEventListener("click", () => { ranges.fill(null); stopped.checked = true; filter(); });
  filter();
}

// The points of a figure whose trials are not chosen become pale. Far slower than everything else that follows a range, so it
// is done where it can be seen, when the mouse rests.
function dim(report, plot) {
  if ((plot.kept || null) === (report.kept || null)) return;
  plot.kept = report.kept;
  const traces = [...plot.data.keys()].filter(index => Array.isArray(plot.data[index].customdata) && (plot.data[index].mode || "").startsWith("markers"));
  const chosen = ({customdata}) => report.kept && [...customdata.keys()].filter(place => report.kept.has(String(customdata[place])));
  if (traces.length) Plotly.restyle(plot, {selectedpoints: traces.map(index => chosen(plot.data[index])), "unselected.marker.opacity": 0.08}, traces);
}

// --- any two numbers --------------------------------------------------------------------------------------------------

async function crossed(report, plot) {
  await plotly();
  const [across, up] = report.article.querySelectorAll(".crossing select");
  for (const [place, select] of [across, up].entries()) {
    for (const [column, label] of Object.entries(report.columns)) select.append(new Option(label, column));
    select.selectedIndex = Math.min(place, select.length - 1);
    select.addEventListener("change", again);
  }
  function again() {
    const traces = Object.entries(report.kinds).map(([kind, [name, colour, symbol]]) => {
      const trials = Object.keys(report.trials).filter(trial => report.trials[trial].kind === kind);
      const of = column => trials.map(trial => report.trials[trial].numbers[column]);
      return {x: of(across.value), y: of(up.value), customdata: trials.map(Number), name, mode: "markers", type: "scatter",
        marker: {color: colour, symbol, size: kind === "knee" ? 14 : 8}, hovertemplate: "trial %{customdata}<br>%{x:.4g}, %{y:.4g}<extra></extra>"};
    });
    const axis = select => ({title: {text: select.selectedOptions[0].text}, gridcolor: "#edf0f2", zeroline: false});
    return Plotly.react(plot, traces, {xaxis: axis(across), yaxis: axis(up), height: 380, margin: {l: 64, r: 12, t: 8, b: 44}, showlegend: false, plot_bgcolor: "#fff"}, settings)
      .then(() => { plot.kept = null; dim(report, plot); plot.removeAllListeners?.("plotly_click"); plot.on("plotly_click", click => show(report, click.points[0].customdata)); });
  }
  await again();
}

// --- two trials -------------------------------------------------------------------------------------------------------

// An architecture as what it costs: a bar for every resolution, as long as its multiply-adds, a colour for each kind of part.
function costs(report, trial, longest) {
  const parts = report.trials[trial].parts, sides = [...new Set(parts.map(part => part[1]))].sort((one, other) => other - one);
  const width = 330, row = 22, svg = drawing("svg", {width, height: row * sides.length, class: "costs", role: "img", "aria-label": `Multiply-adds of trial ${trial} by resolution`});
  sides.forEach((side, index) => {
    let at = 40;
    svg.append(drawing("text", {x: 34, y: row * index + 15, class: "side"}, `${side}²`));
    for (const [component, , macs] of parts.filter(part => part[1] === side)) {
      const wide = (width - 44) * macs / longest, bar = drawing("rect", {x: at, y: row * index + 3, width: wide, height: row - 6, fill: report.components[component][1]});
      bar.append(drawing("title", {}, `${report.components[component][0]} at ${side}²: ${(macs / 1000).toPrecision(3)} G`));
      svg.append(bar);
      at += wide;
    }
  });
  return svg;
}

function longest(report, trials) {
  return Math.max(...trials.flatMap(trial => {
    const totals = {};
    for (const [, side, macs] of report.trials[trial].parts) totals[side] = (totals[side] || 0) + macs;
    return Object.values(totals);
  }), 1);
}

function legend(report, trials) {
  const places = [...new Set(trials.flatMap(trial => report.trials[trial].parts.map(([component]) => component)))].sort((one, other) => one - other);
  const used = new Map(places.map(place => report.components[place]).map(([name, colour, named]) => [named ? name : "rest", colour]));
  const list = element("div", undefined, "legend");
  for (const [name, colour] of used) { const part = element("span", name); part.dataset.mark = "■"; part.style.setProperty("--c", colour); list.append(part); }
  return list;
}

function sideBySide(names, rows) {
  const table = element("table"), head = element("tr");
  head.append(element("th", ""), ...names.map(name => element("th", name, "n")));
  table.append(head);
  for (const [name, ...values] of rows) {
    const row = element("tr", undefined, new Set(values).size > 1 ? "differs" : undefined);
    row.append(element("td", name), ...values.map(value => element("td", value ?? "–", "n")));
    table.append(row);
  }
  return table;
}

function joined(lists) {
  const maps = lists.map(list => new Map(list)), names = [...new Set(lists.flat().map(([name]) => name))];
  return names.map(name => [name, ...maps.map(map => map.get(name))]);
}

function compare(report, trials) {
  const told = trials.map(trial => report.trials[trial]), choices = joined(told.map(one => one.choices));
  const differing = choices.filter(([, one, other]) => one !== other), names = trials.map(trial => `trial ${trial}`);
  const body = detail.querySelector("div");
  body.replaceChildren(element("h3", `Trials ${trials.join(" and ")}`), sideBySide(names, joined(told.map(one => one.scores))));
  body.append(element("h4", differing.length ? "Where they differ" : "No choice differs"));
  if (differing.length) body.append(sideBySide(names, differing));
  if (choices.length > differing.length) body.append(element("p", "The same in both: " + choices.filter(([, one, other]) => one === other).map(([name, value]) => `${name} ${value}`).join(", "), "note"));
  if (told.every(one => one.parts.length)) {
    body.append(element("h4", "Multiply-adds by resolution"));
    for (const trial of trials) body.append(element("p", `trial ${trial}`, "note"), costs(report, trial, longest(report, trials)));
    body.append(legend(report, trials));
  }
  for (const trial of trials) if (report.trials[trial].tiles.length) body.append(element("h4", `Drawn by trial ${trial}`), tiles(report, trial));
  body.append(...trials.map(trial => element("code", `nas export ${report.path} --pick trial:${trial}`)));
  opened(`#${report.id}trial=${trials[0]}&with=${trials[1]}`);
}
