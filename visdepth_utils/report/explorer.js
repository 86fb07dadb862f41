// The explorer of report.html: one sample's outputs by visual depth. Texts of a model are only ever
// set as textContent, so nothing that it says can become markup.
(() => {
  "use strict";
  const NS = "http://www.w3.org/2000/svg";
  const WIDTH = 640, HEIGHT = 150, LEFT = 56, RIGHT = 12, TOP = 14, BOTTOM = 26;
  const byId = (id) => document.getElementById(id);
  const tasks = JSON.parse(byId("explorer-data").textContent);
  const [task, sample, depth] = ["explorer-task", "explorer-sample", "explorer-depth"].map(byId);

  const current = () => tasks[task.value].samples[sample.value];

  function element(parent, name, attributes, text) {
    const made = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }

  function options(select, labels) {
    select.replaceChildren(...labels.map((label, i) => new Option(label, i)));
  }

  // Words in order, those at the given places inside an element of their own.
  function say(target, words, places, tag) {
    target.replaceChildren();
    if (!words.length) target.append("(nothing)");
    words.forEach((word, i) => {
      if (i) target.append(" ");
      if (!places.includes(i)) return target.append(word);
      const marked = document.createElement(tag);
      marked.textContent = word;
      target.append(marked);
    });
  }

  function number(value) {
    if (value === null) return "not measured";
    const small = value && Math.abs(value) < 0.001;
    return small ? value.toExponential(1) : Number(value.toPrecision(3)).toString();
  }
  const same = (row) => !row.added.length && !row.lost.length;

  function compared(row, full) {
    const count = Math.max(row.added.length, row.lost.length);
    const words = count === 1 ? "1 word differs" : `${count} words differ`;
    const text = same(row) ? "The full model's output." : `${words} from the full model's output.`;
    const known = row.score !== null && full.score !== null;
    return known ? `${text} Score ${number(row.score)}, full model ${number(full.score)}.` : text;
  }

  function chart(rows, chosen, label) {
    const svg = byId("explorer-chart");
    svg.replaceChildren();
    const known = rows.filter((row) => row.kl !== null);
    const text = known.length ? `${label}: ${number(rows[chosen].kl)} at the chosen depth` : "Divergence: not measured";
    svg.setAttribute("aria-label", text);
    const last = rows[rows.length - 1].depth || 1;
    const top = Math.max(...known.map((row) => row.kl), 1e-9);
    const x = (row) => LEFT + ((WIDTH - LEFT - RIGHT) * row.depth) / last;
    const y = (row) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * (row.kl ?? 0)) / top;
    const floor = HEIGHT - BOTTOM;
    element(svg, "line", { x1: LEFT, x2: WIDTH - RIGHT, y1: floor, y2: floor, stroke: "#999" });
    if (known.length) {
      element(svg, "text", { x: LEFT - 6, y: TOP + 4, "text-anchor": "end" }, number(top));
      element(svg, "text", { x: LEFT - 6, y: floor + 4, "text-anchor": "end" }, "0");
      const points = known.map((row) => `${x(row)},${y(row)}`).join(" ");
      element(svg, "polyline", { points, fill: "none", stroke: "#0072b2", "stroke-width": 2 });
    }
    const here = rows[chosen];
    element(svg, "line", { class: "marker", x1: x(here), x2: x(here), y1: TOP - 8, y2: floor, stroke: "#d55e00", "stroke-width": 2 });
    const step = Math.ceil(rows.length / 13);  // depths that have room for their number
    rows.forEach((row, i) => {
      const colours = { fill: same(row) ? "#0072b2" : "#fff", stroke: i === chosen ? "#d55e00" : "#0072b2" };
      element(svg, "circle", { cx: x(row), cy: y(row), r: i === chosen ? 6 : 4, "stroke-width": 2, ...colours });
      if (i % step === 0) element(svg, "text", { x: x(row), y: HEIGHT - 6, "text-anchor": "middle" }, row.depth);
    });
  }

  function show() {
    const rows = current().rows, row = rows[depth.value], full = rows[rows.length - 1];
    const where = `${row.depth} of ${full.depth} layers see the picture`;
    depth.setAttribute("aria-valuetext", where);
    byId("explorer-where").textContent = where;
    say(byId("explorer-now"), row.words, row.added, "mark");
    say(byId("explorer-full"), full.words, row.lost, "del");
    byId("explorer-status").textContent = compared(row, full);
    chart(rows, Number(depth.value), tasks[task.value].divergence);
  }

  function newSample() {
    const { prompt, reference, pictures, rows } = current();
    byId("explorer-prompt").textContent = prompt;
    byId("explorer-reference").textContent = reference;
    byId("explorer-pictures").replaceChildren(...pictures.map(({ uri, width }) => {
      const image = new Image();
      image.src = uri;
      image.alt = "picture of the sample";
      image.classList.toggle("pixels", width < 200);
      return image;
    }));
    if (Number(depth.max) !== rows.length - 1) {  // else the reader's depth is kept
      depth.max = rows.length - 1;
      depth.value = Math.floor((rows.length - 1) / 2);
    }
    show();
  }

  function newTask() {
    const { samples, measured, divergence } = tasks[task.value];
    options(sample, samples.map(({ prompt }, i) => `${i + 1}: ${prompt}`));
    byId("explorer-count").textContent = `The first ${samples.length} of ${measured} samples, none picked by hand.`;
    byId("explorer-divergence").textContent = divergence || "divergence: not measured";
    newSample();
  }

  options(task, tasks.map(({ name }) => name));
  task.addEventListener("change", newTask);
  sample.addEventListener("change", newSample);
  depth.addEventListener("input", show);
  newTask();
})();
