"use strict";
// Shared by both reports: tables by name, charts, controls that set a chart's parameters, CSV.
const page = JSON.parse(document.getElementById("data").textContent);
const decoded = {};
const views = {};  // by the chart's name: every view of it

function decode(column) {
  return Array.isArray(column) ? column : column.codes.map(code => column.words[code]);
}

function rowsOf(name) {
  if (!(name in decoded)) {
    const table = page.tables[name] ?? {};
    const names = Object.keys(table);
    const columns = names.map(column => decode(table[column]));
    const n = columns.length ? columns[0].length : 0;
    decoded[name] = Array.from({ length: n }, (_, i) =>
      Object.fromEntries(names.map((column, k) => [column, columns[k][i]])));
  }
  return decoded[name];
}

// Characters that would change how a text looks are shown as escapes.
function printable(text) {
  return String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
    c => "\\u" + c.codePointAt(0).toString(16).padStart(4, "0"));
}

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value; else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

async function draw(target, rows) {
  const name = target.dataset.chart;
  const spec = { ...page.charts[name], datasets: { [target.dataset.table]: rows } };
  const controls = [...document.querySelectorAll(`[data-of="${name}"]`)];
  const chosen = Object.fromEntries(controls.map(control => [control.dataset.sets, control.value]));
  chosen.largest = Math.max(...rows.map(row => Math.abs(row.change ?? 0))) || 1;  // of a color scale
  if (spec.params) {
    spec.params = spec.params.map(p => p.name in chosen ? { ...p, value: chosen[p.name] } : p);
  }
  if (spec.usermeta?.per) {
    spec.height *= new Set(rows.map(row => JSON.stringify(spec.usermeta.per.map(column => row[column])))).size;
  }
  const result = await vegaEmbed(target, spec, {
    mode: "vega-lite", renderer: "svg", config: page.config, logLevel: 1,  // errors
    actions: { export: true, source: false, compiled: false, editor: false },
    downloadFileName: name, tooltip: { sanitize: safe },
  });
  (views[name] ??= []).push(result.view);
  return result.view;
}

// Of tooltips: text of prompts is text.
function safe(value) {
  return printable(value).replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
}

function fits(row, where) {
  return Object.entries(where).every(([column, value]) => row[column] === value);
}

async function drawCharts() {
  for (const control of document.querySelectorAll("[data-sets]")) {
    control.addEventListener("change", () => applyControl(control));
  }
  for (const target of document.querySelectorAll("[data-chart]")) {
    const table = target.dataset.table;
    if (!(table in page.tables)) continue;  // drawn when something is picked
    const where = JSON.parse(target.dataset.where ?? "{}");
    await draw(target, rowsOf(table).filter(row => fits(row, where)));
  }
  document.documentElement.dataset.drawn = "true";
}

async function applyControl(control) {
  for (const view of views[control.dataset.of] ?? []) {
    await view.signal(control.dataset.sets, control.value).runAsync();
  }
}

function download(name, lines) {
  const quoted = cell => {
    const text = cell === null || cell === undefined ? "" : String(cell);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = lines.map(line => line.map(quoted).join(",")).join("\r\n") + "\r\n";
  const link = element("a", {
    href: URL.createObjectURL(new Blob([csv], { type: "text/csv;charset=utf-8" })),
    download: name.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60) + ".csv",
  });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

for (const button of document.querySelectorAll("[data-csv]")) {
  button.addEventListener("click", () => {
    const rows = rowsOf(button.dataset.csv);
    const names = Object.keys(rows[0] ?? {});
    download(button.dataset.csv, [names, ...rows.map(row => names.map(name => row[name]))]);
  });
}

for (const table of document.querySelectorAll("table[data-name]")) {
  const button = element("button", { type: "button", className: "csv", textContent: "CSV" });
  button.setAttribute("aria-label", `Download as CSV: ${table.dataset.name}`);
  button.addEventListener("click", () => {
    const rows = [...table.querySelectorAll("tr")];
    download(table.dataset.name, rows.map(row => [...row.cells].map(cell => cell.textContent)));
  });
  table.parentElement.before(button);
}

addEventListener("beforeprint", () => {
  for (const closed of document.querySelectorAll("main details:not([open])")) closed.open = true;
});
