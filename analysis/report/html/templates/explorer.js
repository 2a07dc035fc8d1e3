// The sample explorer: search, sort, pick a prompt, see its curves at every layer.
const explorer = (() => {
  const data = page.samples;
  if (!data) return null;
  const PAGE = 25;
  const n = data.id.length, L = data.layers.length, M = data.multipliers.length;
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const slopes = new Int16Array(bytes(data.slope.values).buffer);
  const curves = new Int8Array(bytes(data.curves.values).buffer);
  const curveOf = new Map(data.curves.of.map((sample, place) => [sample, place]));
  const [behavior, framing, letter, prompt] =
    ["behavior", "framing", "letter", "prompt"].map(name => decode(data[name]));
  const slope = (i, place) => slopes[i * L + place] * data.slope.step;
  const samples = data.id.map((id, i) => {
    let best = 0;
    for (let place = 1; place < L; place++) if (slope(i, place) > slope(i, best)) best = place;
    const fixed = data.layers.indexOf(data.fixed[behavior[i]]);
    return {
      sample: i, id, behavior: behavior[i], framing: framing[i], letter: letter[i], prompt: prompt[i],
      best: data.layers[best], slope: slope(i, best),
      at_fixed: fixed < 0 ? null : slope(i, fixed),
      predicted: data.predicted ? data.predicted[i] : null,
      found: `${id} ${prompt[i]}`.toLowerCase(),
    };
  });
  const means = {};
  for (const s of samples) {
    const key = JSON.stringify([s.behavior, s.framing]);
    const mean = means[key] ??= { n: 0, sum: new Array(L).fill(0) };
    mean.n += 1;
    for (let place = 0; place < L; place++) mean.sum[place] += slope(s.sample, place);
  }

  // What all prompts of a behavior begin with tells none of them apart: the list leaves it out.
  const beginnings = {};
  for (const s of samples) {
    let n = 0;
    const before = beginnings[s.behavior] ?? s.prompt;
    while (n < before.length && n < s.prompt.length && before[n] === s.prompt[n]) n += 1;
    beginnings[s.behavior] = before.slice(0, n);
  }
  const tail = s => {
    const n = beginnings[s.behavior].length;
    return n < 12 || n >= s.prompt.length ? s.prompt : `…${s.prompt.slice(n)}`;
  };

  const root = document.getElementById("explorer");
  const body = root.querySelector("tbody");
  const control = name => document.getElementById(`explorer-${name}`);
  const number = value => value === null ? "" : Number(value.toPrecision(3)).toString();
  let order = { by: "at_fixed", up: false }, first = 0, shown = [], picked = -1;

  function filter() {
    const text = control("search").value.trim().toLowerCase();
    const wanted = ["behavior", "framing", "letter", "best"]
      .map(name => [name, control(name)?.value ?? ""]).filter(([, value]) => value !== "");
    shown = samples.filter(s => s.found.includes(text)
      && wanted.every(([name, value]) => String(s[name]) === value));
    const sign = order.up ? 1 : -1, key = order.by;
    shown.sort((a, b) => {
      const [x, y] = [a[key], b[key]];
      if (x === y) return a.sample - b.sample;
      if (x === null) return 1;
      if (y === null) return -1;
      return sign * (x < y ? -1 : 1);
    });
  }

  function render() {
    first = Math.max(0, Math.min(first, shown.length - 1 - (shown.length - 1) % PAGE));
    body.replaceChildren(...shown.slice(first, first + PAGE).map(s => {
      const row = element("tr", { tabIndex: 0 },
        element("th", { scope: "row", className: "text less", textContent: printable(s.behavior), title: printable(s.id) }),
        ...(data.framing.words.length > 1 ? [element("td", { className: "text less", textContent: s.framing })] : []),
        element("td", { textContent: s.letter }),
        element("td", { textContent: s.best }),
        element("td", { textContent: number(s.at_fixed) }),
        element("td", { className: "less", textContent: number(s.slope) }),
        element("td", { className: "less", textContent: s.predicted ?? "" }),
        element("td", { className: "text" }, element("div", { className: "lines", textContent: printable(tail(s)) })));
      row.dataset.sample = s.sample;
      row.setAttribute("aria-selected", s.sample === picked);
      return row;
    }));
    const last = Math.min(first + PAGE, shown.length);
    const some = n < data.n_tested ? ` (${n} of ${data.n_tested} test samples are in this page)` : "";
    control("count").textContent = shown.length
      ? `${first + 1}–${last} of ${shown.length} samples${some}` : `no sample fits${some}`;
    control("before").disabled = first === 0;
    control("after").disabled = last >= shown.length;
    for (const head of root.querySelectorAll("th[data-sort]")) {
      const sorted = head.dataset.sort === order.by;
      head.setAttribute("aria-sort", sorted ? (order.up ? "ascending" : "descending") : "none");
    }
  }

  function update() { first = 0; filter(); render(); }

  async function pick(sample, { scroll = false } = {}) {
    const s = samples[sample];
    picked = sample;
    for (const row of body.rows) row.setAttribute("aria-selected", Number(row.dataset.sample) === sample);
    const detail = document.getElementById("detail");
    detail.dataset.sample = sample;
    detail.querySelector("h3").textContent = printable(s.id);
    detail.querySelector(".about").textContent = printable([
      s.behavior, s.framing, s.letter && `positive answer ${s.letter}`,
      `best layer ${s.best} (slope ${number(s.slope)})`,
      s.at_fixed !== null && `fixed layer ${data.fixed[s.behavior]} (slope ${number(s.at_fixed)})`,
      s.predicted !== null && `predicted layer ${s.predicted}`,
    ].filter(Boolean).join(" · "));
    detail.querySelector(".prompt").textContent = printable(s.prompt);
    detail.hidden = false;
    const mean = means[JSON.stringify([s.behavior, s.framing])];
    const marks = layer => [
      layer === s.best && "best", layer === data.fixed[s.behavior] && "fixed",
      layer === s.predicted && "predicted",
    ].filter(Boolean).join(", ");
    await show("sample-layers", data.layers.map((layer, place) => ({
      layer, slope: slope(sample, place), mean: mean.sum[place] / mean.n, chosen: marks(layer),
    })));
    const place = curveOf.get(sample);
    detail.querySelector(".without-curves").hidden = place !== undefined;
    detail.querySelector(".with-curves").hidden = place === undefined;
    if (place !== undefined) {
      const step = data.curves.steps[place];
      await show("sample-curves", data.layers.flatMap((layer, l) => data.multipliers.map((multiplier, m) => ({
        layer, multiplier, propensity: curves[(place * L + l) * M + m] * step,
      }))));
    }
    for (const name of ["behavior", "letter", "best"]) {
      for (const view of views[`plane-${name}`] ?? []) await view.signal("picked", sample).runAsync();
    }
    if (scroll || matchMedia("(max-width: 52rem)").matches) detail.scrollIntoView({ block: "nearest" });
  }

  async function show(name, rows) {
    const [view] = views[name] ?? [];
    if (view) await view.data(name, rows).resize().runAsync();
    else await draw(document.querySelector(`[data-chart="${name}"]`), rows);
  }

  body.addEventListener("click", event => {
    const row = event.target.closest("tr");
    if (row) pick(Number(row.dataset.sample));
  });
  body.addEventListener("keydown", event => {
    const row = event.target.closest("tr");
    if (!row) return;
    if (event.key === "Enter" || event.key === " ") pick(Number(row.dataset.sample));
    else if (event.key === "ArrowDown") row.nextElementSibling?.focus();
    else if (event.key === "ArrowUp") row.previousElementSibling?.focus();
    else return;
    event.preventDefault();
  });
  for (const head of root.querySelectorAll("th[data-sort] button")) {
    head.addEventListener("click", () => {
      const by = head.parentElement.dataset.sort;
      order = { by, up: order.by === by ? !order.up : false };
      update();
    });
  }
  for (const name of ["search", "behavior", "framing", "letter", "best"]) {
    control(name)?.addEventListener("input", update);
  }
  control("before").addEventListener("click", () => { first -= PAGE; render(); });
  control("after").addEventListener("click", () => { first += PAGE; render(); });
  control("csv").addEventListener("click", () => {
    const names = ["id", "behavior", "framing", "letter", "best", "slope", "at_fixed", "predicted", "prompt"];
    const layers = data.layers.map(layer => `slope_layer_${layer}`);
    download("samples", [[...names, ...layers], ...shown.map(s => [
      ...names.map(name => s[name]),
      ...data.layers.map((_, place) => Number(slope(s.sample, place).toPrecision(4))),
    ])]);
  });
  update();

  // Prompts in the plane: drawn anew for each property that colors them.
  const coloring = document.getElementById("plane-color");
  async function drawPlane() {
    const target = document.querySelector("#plane-chart");
    for (const name of ["behavior", "letter", "best"]) views[`plane-${name}`] = [];
    target.dataset.chart = `plane-${coloring.value}`;
    const [x, y] = data.plane;
    const rows = samples.filter(s => x[s.sample] !== null)
      .map(s => ({ ...s, prompt: s.prompt.slice(0, 160), x: x[s.sample], y: y[s.sample] }));
    const view = await draw(target, rows);
    await view.signal("picked", picked).runAsync();
    view.addEventListener("click", (_event, item) => {
      if (item?.datum?.sample !== undefined) pick(item.datum.sample, { scroll: true });
    });
  }
  if (coloring && data.plane) {
    coloring.addEventListener("change", drawPlane);
    drawPlane();
  }
  return { pick, samples };
})();
