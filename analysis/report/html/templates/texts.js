// Browse texts: choose a prompt, read what each method wrote at each strength.
const texts = (() => {
  const data = page.texts;
  if (!data) return null;
  const PAGE = 25;
  const [behavior, split, written] = [data.behavior, data.split, data.text].map(decode);
  const prompts = data.id.map((id, i) => ({
    place: i, id, behavior: behavior[i], split: split[i], prompt: data.prompt[i], texts: [],
  }));
  written.forEach((text, i) => prompts[data.of[i]].texts.push({
    method: data.ways.method[data.way[i]], strength: data.ways.strength[data.way[i]],
    text, target: data.target[i], nll: data.nll[i],
  }));
  for (const p of prompts) {
    p.found = [p.id, p.prompt, ...p.texts.map(t => t.text)].join("\n").toLowerCase();
  }
  const root = document.getElementById("texts-explorer");
  const body = root.querySelector("tbody");
  const detail = document.getElementById("detail");
  const control = name => document.getElementById(`texts-${name}`);
  const number = value => value === null ? "" : Number(value.toPrecision(3)).toString();
  let first = 0, shown = prompts, picked = null;

  function render() {
    body.replaceChildren(...shown.slice(first, first + PAGE).map(p => {
      const row = element("tr", { tabIndex: 0 },
        element("th", { scope: "row", className: "text", textContent: printable(p.behavior) }),
        element("td", { className: "text", textContent: p.split }),
        element("td", { className: "text", title: printable(p.id) }, element("div", { className: "lines", textContent: printable(p.prompt) })));
      row.dataset.place = p.place;
      row.setAttribute("aria-selected", p === picked);
      return row;
    }));
    const last = Math.min(first + PAGE, shown.length);
    const some = prompts.length < data.n_prompts ? ` (${prompts.length} of ${data.n_prompts} prompts are in this page)` : "";
    control("count").textContent = shown.length ? `${first + 1}–${last} of ${shown.length} prompts${some}` : `no prompt fits${some}`;
    control("before").disabled = first === 0;
    control("after").disabled = last >= shown.length;
  }

  function update() {
    const wanted = control("search").value.trim().toLowerCase();
    shown = prompts.filter(p => p.found.includes(wanted)
      && [p.behavior, ""].includes(control("behavior").value)
      && [p.split, ""].includes(control("split").value));
    first = 0;
    render();
    if (picked) pick(picked);
  }

  function pick(p) {
    picked = p;
    for (const row of body.rows) row.setAttribute("aria-selected", Number(row.dataset.place) === p.place);
    detail.dataset.place = p.place;
    detail.querySelector("h3").textContent = printable(p.id);
    detail.querySelector(".prompt").textContent = printable(p.prompt);
    const method = control("method").value;
    detail.querySelector("tbody").replaceChildren(...p.texts
      .filter(t => method === "" || t.method === method || t.strength === "")
      .map(t => element("tr", {},
        element("th", { scope: "row", textContent: t.method }),
        element("td", { className: "n", textContent: t.strength }),
        element("td", { textContent: printable(t.text) }),
        element("td", { className: "n", textContent: number(t.target) }),
        element("td", { className: "n", textContent: number(t.nll) }))));
    detail.hidden = false;
  }

  function choose(row) {
    pick(prompts[Number(row.dataset.place)]);
    if (matchMedia("(max-width: 52rem)").matches) detail.scrollIntoView({ block: "nearest" });
  }
  body.addEventListener("click", event => {
    const row = event.target.closest("tr");
    if (row) choose(row);
  });
  body.addEventListener("keydown", event => {
    const row = event.target.closest("tr");
    if (!row) return;
    if (event.key === "Enter" || event.key === " ") choose(row);
    else if (event.key === "ArrowDown") row.nextElementSibling?.focus();
    else if (event.key === "ArrowUp") row.previousElementSibling?.focus();
    else return;
    event.preventDefault();
  });
  for (const name of ["search", "behavior", "split", "method"]) control(name).addEventListener("input", update);
  control("before").addEventListener("click", () => { first -= PAGE; render(); });
  control("after").addEventListener("click", () => { first += PAGE; render(); });
  render();
  return { prompts };
})();
