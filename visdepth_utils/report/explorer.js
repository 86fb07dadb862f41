// The explorer of report.html: one sample's outputs by depth and intervention. Texts of a model are
// only ever set as textContent, so nothing that it says can become markup.
(() => {
  "use strict";
  const NS = "http://www.w3.org/2000/svg";
  const HEIGHT = 190, LEFT = 48, RIGHT = 16, TOP = 26, BOTTOM = 40;  // report.css: the slider's edges
  const byId = (id) => document.getElementById(id);
  const tasks = JSON.parse(byId("explorer-data").textContent);
  const [task, sample, depth, measure, svg] =
    ["task", "sample", "depth", "measure", "chart"].map((name) => byId(`explorer-${name}`));
  const radios = [...document.querySelectorAll("[name=explorer-mode]")];
  const SEES = {
    "remove": "see the picture",
    "freeze": "process the picture, the others read it as it was",
    "freeze other image": "process the picture, the others read another one",
    "freeze noise": "process the picture, the others read noise",
  };

  const current = () => tasks[task.value].samples[sample.value];
  const mode = () => radios.find((one) => one.checked).value;
  const full = () => Object.values(current().rows)[0].at(-1);
  const at = (name, d) => current().rows[name].find((row) => row.depth === d);
  const chosen = () => Number(depth.value);

  function element(name, attributes, text) {
    const made = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    svg.append(made);
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
    return value && Math.abs(value) < 0.001 ? "under 0.001" : Number(value.toPrecision(3)).toString();
  }
  const different = (row) => Math.max(row.added.length, row.lost.length);
  const inWords = () => measure.value === "0";
  const value = (row) => inWords()
    ? (100 * different(row)) / Math.max(row.words.length, full().words.length, 1) : row.kl;
  const unit = (v) => v === null ? "not measured" : inWords() ? `${Math.round(v)}%` : `${number(v)} nats`;

  function compared(row) {
    const count = different(row), whole = full();
    const words = count === 1 ? "1 word differs" : `${count} words differ`;
    const text = count ? `${words} from the full model's output.` : "The full model's output.";
    const known = row.score !== null && whole.score !== null;
    return known ? `${text} Score ${number(row.score)}, full model ${number(whole.score)}.` : text;
  }

  // Interventions whose values may stand in one chart: of divergences only those of one kind.
  function drawn() {
    const kinds = tasks[task.value].modes;
    return radios.map((one) => one.value).filter((name) =>
      name in current().rows && (inWords() || kinds[name] === kinds[mode()]));
  }

  function values(d) {
    const told = drawn().map((name) => [name, at(name, d)]).filter(([, row]) => row)
      .map(([name, row]) => `${name} ${unit(value(row))}`);
    byId("explorer-values").textContent = `At depth ${d}: ${told.join(", ") || "not measured"}.`;
  }

  const last = () => Number(depth.max) || 1;
  const room = () => svg.getBoundingClientRect().width - LEFT - RIGHT;
  const x = (d) => LEFT + (room() * d) / last();

  function chart() {
    svg.replaceChildren();
    const width = room() + LEFT + RIGHT, floor = HEIGHT - BOTTOM;
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const rows = (name) => current().rows[name].filter((row) => value(row) !== null);
    const top = inWords() ? 100 : Math.max(...drawn().flatMap((name) => rows(name).map(value)), 1e-3);
    const y = (row) => floor - ((floor - TOP) * value(row)) / top;
    const here = at(mode(), chosen());
    const label = measure.selectedOptions[0].textContent;
    svg.setAttribute("aria-label", `${label}: ${here ? unit(value(here)) : "not measured"} at the chosen depth`);
    element("text", { x: 0, y: 12 }, label);
    for (const share of [0, 0.5, 1]) {
      const place = floor - (floor - TOP) * share;
      element("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: place, y2: place });
      element("text", { x: LEFT - 12, y: place + 4, "text-anchor": "end" }, number(top * share));
    }
    const step = Math.ceil((last() + 1) / ((width - LEFT) / 28));  // depths that have room for their number
    for (let d = 0; d <= last(); d += step) element("text", { x: x(d), y: floor + 18, "text-anchor": "middle" }, d);
    element("text", { x: width - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, "depth d");
    element("line", { class: "marker", x1: x(chosen()), x2: x(chosen()), y1: TOP - 6, y2: floor });
    for (const name of drawn().sort((a, b) => (a === mode()) - (b === mode()))) {
      const look = `${name === mode() ? "chosen" : "other"} mode-${radios.findIndex((one) => one.value === name)}`;
      const parts = [[]];  // a control that stops early is not joined to the full model's point
      rows(name).forEach((row) => {
        if (parts.at(-1).length && row.depth - parts.at(-1).at(-1).depth > 1) parts.push([]);
        parts.at(-1).push(row);
      });
      for (const part of parts) {
        const points = part.map((row) => `${x(row.depth)},${y(row)}`).join(" ");
        element("polyline", { class: look, points });
      }
      if (name !== mode()) continue;
      for (const row of rows(name)) {
        const kind = `point ${look} ${different(row) ? "hollow" : ""}`;
        element("circle", { class: kind, cx: x(row.depth), cy: y(row), r: row.depth === chosen() ? 7 : 4.5 });
      }
    }
    values(chosen());
  }

  function show() {
    const row = at(mode(), chosen()), whole = full();
    const where = `${chosen()} of ${whole.depth} layers ${SEES[mode()] ?? mode()}`;
    depth.setAttribute("aria-valuetext", where);
    byId("explorer-where").textContent = where;
    say(byId("explorer-full"), whole.words, row ? row.lost : [], "del");
    if (row) say(byId("explorer-now"), row.words, row.added, "mark");
    else byId("explorer-now").textContent = "Not measured at this depth.";
    byId("explorer-status").textContent = row ? compared(row) : "";
    byId("explorer-divergence").textContent = inWords()
      ? "words that are not the full model's, as a share of the longer text"
      : tasks[task.value].modes[mode()] || "not measured";
    chart();
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
    for (const one of radios) {
      one.disabled = !(one.value in rows);
      one.parentElement.classList.toggle("missing", one.disabled);
    }
    if (!radios.some((one) => one.checked && !one.disabled)) radios.find((one) => !one.disabled).checked = true;
    const layers = full().depth;
    if (Number(depth.max) !== layers) {  // else the reader's depth is kept
      depth.max = layers;
      depth.value = Math.floor(layers / 2);
    }
    show();
  }

  function newTask() {
    const { samples, measured } = tasks[task.value];
    options(sample, samples.map(({ prompt }, i) => `${i + 1}: ${prompt}`));
    byId("explorer-count").textContent = `The first ${samples.length} of ${measured} samples, none picked by hand.`;
    newSample();
  }

  const nearest = (event) => {
    const share = (event.clientX - svg.getBoundingClientRect().left - LEFT) / room();
    return Math.round(Math.min(1, Math.max(0, share)) * last());
  };

  options(task, tasks.map(({ name }) => name));
  options(measure, ["Words that differ (%)", "Divergence (nats)"]);
  task.addEventListener("change", newTask);
  sample.addEventListener("change", newSample);
  for (const one of [depth, measure, ...radios]) one.addEventListener("input", show);
  svg.addEventListener("click", (event) => { depth.value = nearest(event); show(); });
  svg.addEventListener("pointermove", (event) => values(nearest(event)));
  svg.addEventListener("pointerleave", () => values(chosen()));
  for (const link of document.querySelectorAll("[data-look]")) {
    link.addEventListener("click", () => {
      const [t, s, d] = link.dataset.look.split(" ");
      task.value = t;
      newTask();
      sample.value = s;
      newSample();
      depth.value = d;
      show();
    });
  }
  newTask();
  new ResizeObserver(chart).observe(svg);
})();
