"use strict";
const run = JSON.parse(document.getElementById("run").textContent);
const PAGE = 100;
const byId = (id) => document.getElementById(id);

// What would steer a terminal, hide, or turn the direction of the text around it is shown by its number instead.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;

function put(parent, text, needle = "") {
  let at = 0;
  const plain = (part) => {
    if (!part) return;
    let from = 0;
    const low = part.toLowerCase();
    for (let hit; needle && (hit = low.indexOf(needle, from)) >= 0; from = hit + needle.length) {
      parent.append(part.slice(from, hit));
      make("mark", part.slice(hit, hit + needle.length), parent);
    }
    parent.append(part.slice(from));
  };
  for (const found of text.matchAll(HIDDEN)) {
    plain(text.slice(at, found.index));
    const shown = document.createElement("span");
    shown.className = "hidden";
    shown.textContent = "U+" + found[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    parent.append(shown);
    at = found.index + found[0].length;
  }
  plain(text.slice(at));
  return parent;
}

function make(tag, text, parent, name) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined && text !== null) tag === "mark" ? (node.textContent = text) : put(node, String(text));
  if (parent) parent.append(node);
  return node;
}

const number = (n) => Number(n).toLocaleString("en");
const count = (n, noun) => `${number(n)} ${noun}${n === 1 ? "" : "s"}`;
const money = (cost) => (cost === null || cost === undefined ? "" : `$${cost.toFixed(cost < 1 ? 4 : 2)}`);
const seconds = (s) => (s < 60 ? `${s.toFixed(s < 10 ? 2 : 1)} s` : `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`);
const line = (text, most = 110) => {
  const first = text.split("\n").find((each) => each.trim()) || "";
  return first.trim().length > most ? first.trim().slice(0, most).replace(/\s+\S*$/, "") + "…" : first.trim();
};

// ---- the tree: every node is known by its path, and is built only when somebody opens it

const nodes = new Map();
const texts = [];

function entry(path, parent, summary, { own = () => {}, kids = [], words = [] }) {
  nodes.set(path, { path, parent, summary, own, kids, element: null, body: null });
  texts.push([path, words.join("\n").toLowerCase()]);
}

function block(parent, label, text, needle) {
  if (!text || !text.chars) return;
  make("p", label, parent, "label");
  put(make("pre", undefined, parent), text.text, needle);
  if (text.chars > text.text.length) {
    make("p", `${number(text.chars - text.text.length)} of ${number(text.chars)} characters are not in this report`, parent, "more");
  }
}

const spent = (it) => `${number(it.input)} + ${number(it.output)} tokens${it.cost === null ? "" : ", " + money(it.cost)}`;

function declare() {
  const runs = new Map(run.runs.map((each) => [each.id, each]));
  const declared = new Set();
  const declareRun = (it, path, parent) => {
    declared.add(it.id);
    const kids = [];
    it.turns.forEach((turn, t) => {
      const at = `${path}/t${t}`;
      kids.push(at);
      entry(at, path, (s) => {
        make("span", "turn " + (t + 1), s, "tag turn");
        s.append(`${turn.model}, ${seconds(turn.end - turn.start)}, ${spent(turn)}`);
      }, { own: (body, needle) => block(body, "reply", turn.reply, needle), words: [turn.reply.text] });
      it.cells.filter((cell) => cell.turn === t).forEach((cell) => kids.push(declareCell(it, cell, path)));
    });
    it.cells.filter((cell) => cell.turn >= it.turns.length || cell.turn < 0).forEach((cell) => kids.push(declareCell(it, cell, path)));
    entry(path, parent, (s) => {
      make("span", it.depth ? "nested" : "run", s, "tag " + (it.depth ? "nested" : ""));
      put(s, `${line(it.question)} — ${it.stop_reason}, ${count(it.turns.length, "turn")}, ${seconds(it.end - it.start)}`);
    }, { kids, words: [it.question, it.depth ? it.answer.text : ""], own: (body, needle) => {
      if (it.depth) block(body, "answer", it.answer, needle);
      it.limits.forEach((limit) => make("p", `limit reached: ${limit}`, body, "bad"));
    } });
    return path;
  };
  const declareCell = (it, cell, parent) => {
    const path = `${parent}/c${cell.index}`;
    const failed = cell.calls.filter((call) => call.status !== "answered").length;
    const pages = [];
    for (let from = 0; from < cell.calls.length; from += PAGE) {
      const part = cell.calls.slice(from, from + PAGE);
      const at = cell.calls.length > PAGE ? `${path}/p${from / PAGE}` : path;
      const kids = part.map((call, n) => declareCall(call, at, from + n));
      if (at === path) pages.push(...kids);
      else {
        pages.push(at);
        const bad = part.filter((call) => call.status !== "answered").length;
        entry(at, path, (s) => put(s, `calls ${number(from + 1)} to ${number(from + part.length)}${bad ? `, ${bad} without an answer` : ""}`), { kids });
      }
    }
    entry(path, parent, (s) => {
      make("span", cell.phase, s, "tag " + (cell.error ? "bad" : "cell"));
      make("code", line(cell.code.text.replace(/^\s*(import|from) .*$/gm, "")) || line(cell.code.text), s);
      const calls = cell.calls.length ? `, ${count(cell.calls.length, "call")}${failed ? ` (${failed} without an answer)` : ""}` : "";
      s.append(` — cell ${cell.index}, ${seconds(cell.end - cell.start)}${calls}${cell.ended ? "" : ", did not end"}`);
    }, { kids: pages, words: [cell.code.text, cell.stdout.text, cell.error ? cell.error.text : ""], own: (body, needle) => {
      block(body, "code", cell.code, needle);
      block(body, "output", cell.stdout, needle);
      if (cell.error) block(body, "error", cell.error, needle);
    } });
    return path;
  };
  const declareCall = (call, parent, n) => {
    const path = `${parent}/k${n}`;
    const child = runs.get(call.id);
    const kids = child && !declared.has(call.id) ? [declareRun(child, `${path}/r`, path)] : [];
    call.attempts.forEach((attempt, m) => kids.push(declareCall(attempt, path, m)));
    entry(path, parent, (s) => {
      const ok = call.status === "answered";
      make("span", call.kind, s, "tag " + (ok ? (child ? "nested" : "call") : "bad"));
      const cost = call.attempts.length ? count(call.attempts.length, "attempt") : spent(call);
      put(s, `${line(call.prompt.text, 90)} — ${ok ? "" : call.status + ", "}${seconds(call.end - call.start)}, ${cost}`);
    }, { kids, words: [call.prompt.text, call.context.text, call.reply.text, call.message], own: (body, needle) => {
      if (call.message) make("p", call.message, body, "bad");
      block(body, "prompt", call.prompt, needle);
      block(body, "asked of", call.context, needle);
      block(body, "reply", call.reply, needle);
    } });
    return path;
  };
  const tops = [];
  run.runs.forEach((each, n) => {
    if (!declared.has(each.id)) tops.push(declareRun(each, `r${n}`, null));
  });
  return tops;
}

function show(path, parent) {
  const it = nodes.get(path);
  it.element = make("details", undefined, parent);
  it.summary(make("summary", undefined, it.element));
  it.element.addEventListener("toggle", () => { if (it.element.open) fill(it); });
}

function fill(it, needle = "") {
  if (it.body && !needle) return;
  const body = document.createElement("div");
  it.own(body, needle);
  if (it.body) it.body.replaceWith(body);
  else {
    it.element.append(body);
    it.kids.forEach((kid) => show(kid, it.element));
  }
  it.body = body;
}

function reveal(path, needle = "") {
  const above = [];
  for (let at = nodes.get(path); at; at = nodes.get(at.parent)) above.unshift(at);
  for (const it of above) {
    fill(it, it.path === path ? needle : "");
    it.element.open = true;
  }
  document.querySelectorAll(".here").forEach((each) => each.classList.remove("here"));
  const { element } = nodes.get(path);
  element.classList.add("here");
  element.firstChild.focus({ preventScroll: true });
  element.scrollIntoView({ block: "center" });
}

// ---- search

let hits = [];
let hit = -1;
let sought = "";

function seek(step) {
  const needle = byId("words").value.trim().toLowerCase();
  if (needle !== sought) {
    sought = needle;
    hits = needle ? texts.filter((each) => each[1].includes(needle)).map((each) => each[0]) : [];
    hit = step > 0 ? -1 : 0;
  }
  if (!hits.length) { byId("found").textContent = needle ? "nothing found" : ""; return; }
  hit = (hit + step + hits.length) % hits.length;
  byId("found").textContent = `${number(hit + 1)} of ${number(hits.length)}`;
  reveal(hits[hit], needle);
}

// ---- time

function bars() {
  const found = [];
  const walk = (it, path) => {
    it.turns.forEach((turn, t) => found.push({ start: turn.start, end: turn.end, kind: "plan", path: `${path}/t${t}`, name: `turn ${t + 1}` }));
    it.cells.forEach((cell) => {
      const at = `${path}/c${cell.index}`;
      found.push({ start: cell.start, end: cell.end, kind: "cell", path: at, name: `${cell.phase} cell ${cell.index}` });
      cell.calls.forEach((call, n) => {
        const key = cell.calls.length > PAGE ? `${at}/p${Math.floor(n / PAGE)}/k${n}` : `${at}/k${n}`;
        const nested = nodes.has(`${key}/r`);
        found.push({ start: call.start, end: call.end, kind: nested ? "nested" : "call", bad: call.status !== "answered", path: key, name: `${call.kind}: ${line(call.prompt.text, 60)}` });
        if (nested) walk(run.runs.find((each) => each.id === call.id), `${key}/r`);
      });
    });
  };
  run.runs.forEach((each, n) => { if (nodes.has(`r${n}`)) walk(each, `r${n}`); });
  return lanes(found);
}

function lanes(found) {
  const order = { plan: 0, cell: 1, nested: 2, call: 3 };
  found.sort((a, b) => order[a.kind] - order[b.kind] || a.start - b.start);
  const ends = [];
  let first = 0;
  let kind = null;
  for (const bar of found) {
    if (bar.kind !== kind) { kind = bar.kind; first = ends.length; }
    let lane = first;
    while (lane < ends.length && ends[lane] > bar.start) lane++;
    ends[lane] = bar.end;
    bar.lane = lane;
  }
  found.count = ends.length;
  return found;
}

function drawTime(found) {
  const canvas = byId("time");
  const style = getComputedStyle(document.documentElement);
  const height = Math.max(3, Math.min(14, Math.floor(420 / Math.max(1, found.count))));
  const width = canvas.clientWidth || 800;
  const ratio = window.devicePixelRatio || 1;
  canvas.style.height = `${found.count * height + 8}px`;
  canvas.width = width * ratio;
  canvas.height = (found.count * height + 8) * ratio;
  canvas.setAttribute("aria-label", `${count(found.length, "turn, cell and call")} over ${seconds(run.seconds)}; the tree below holds the same`);
  const scale = width / Math.max(run.seconds, 0.001);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  for (const bar of found) {
    pen.fillStyle = style.getPropertyValue(bar.bad ? "--bad" : `--${bar.kind}`);
    pen.fillRect(bar.start * scale, 4 + bar.lane * height, Math.max(1, (bar.end - bar.start) * scale), height - (height > 4 ? 1 : 0));
  }
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (event.clientX - box.left) / scale;
    const lane = Math.floor((event.clientY - box.top - 4) / height);
    return found.find((bar) => bar.lane === lane && bar.start - 1 / scale <= at && at <= bar.end + 1 / scale);
  };
  canvas.onmousemove = (event) => {
    const bar = under(event);
    canvas.style.cursor = bar ? "pointer" : "";
    byId("pointed").replaceChildren();
    if (bar) put(byId("pointed"), `${bar.name} — ${seconds(bar.start)} to ${seconds(bar.end)}`);
  };
  canvas.onclick = (event) => { const bar = under(event); if (bar) reveal(bar.path); };
}

// ---- coverage

function drawStrip() {
  const { sources, scanned, read, cited } = run.strip;
  if (!read.length) { byId("strip").hidden = true; return; }
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${read.length} 54`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", byId("coverage").textContent);
  const rows = [["scanned", scanned, 0, 18], ["read", read, 18, 18], ["cited", cited, 36, 18]];
  for (const [name, shares, top, height] of rows) {
    const path = document.createElementNS(svg.namespaceURI, "path");
    path.setAttribute("d", shares.map((share, n) => (share ? `M${n} ${top + height}h1v${-(height - 1) * Math.max(share, name === "cited" ? 1 : 0.15)}h-1z` : "")).join(""));
    path.setAttribute("fill", `var(--${name})`);
    svg.append(path);
  }
  if (sources.length) svg.onmousemove = (event) => {
    const box = svg.getBoundingClientRect();
    const total = sources.reduce((sum, each) => sum + each[1], 0);
    let at = Math.floor(((event.clientX - box.left) / box.width) * total);
    const found = sources.find((each) => (at < each[1] ? true : ((at -= each[1]), false)));
    const title = svg.querySelector("title") || svg.appendChild(document.createElementNS(svg.namespaceURI, "title"));
    if (found) title.textContent = `${found[0]}, character ${number(at)}`;
  };
  byId("strip").append(svg);
}

function key(parent, pairs) {
  for (const [name, text] of pairs) {
    make("span", undefined, parent, "key").style.background = `var(--${name})`;
    parent.append(text);
  }
}

function drawCoverage() {
  const { scanned, read } = run.coverage;
  if (read === null || read === undefined) { byId("covered").hidden = true; return; }
  const share = (part) => (part === null || part === undefined ? "unknown" : `${(part * 100).toFixed(part && part < 0.1 ? 1 : 0)} %`);
  const told = byId("coverage");
  key(told, [["scanned", `scanned by code: ${share(scanned)}`], ["read", `read by a model: ${share(read)}`], ["cited", "cited"]]);
  told.append("; what is empty in every row was never touched");
  told.append(run.number ? " for this question: what earlier questions of the thread read is on their pages." : ".");
  if (!run.unread.length) return;
  const parts = run.unread.map((part) => `${part.source}, ${number(part.start)} to ${number(part.end)}`);
  if (run.unread_more) parts.push(`${number(run.unread_more)} shorter parts`);
  put(make("p", undefined, told.parentNode, "quiet"), `Read by no model: ${parts.join("; ")}`);
}

// ---- the rest

function table(caption, rows) {
  const priced = rows.some((row) => row[4] !== null);
  const made = make("table", undefined, byId("spent"));
  make("caption", `by ${caption}`, made);
  const head = make("tr", undefined, make("thead", undefined, made));
  [caption, "asked", "input tokens", "output tokens", ...(priced ? ["cost"] : [])].forEach((name) => (make("th", name, head).scope = "col"));
  const body = make("tbody", undefined, made);
  rows.forEach((row) => {
    const tr = make("tr", undefined, body);
    make("td", row[0], tr);
    row.slice(1, 4).forEach((n) => make("td", number(n), tr));
    if (priced) make("td", money(row[4]), tr);
  });
}

function drawHead() {
  put(byId("question"), run.question);
  const { context, usage } = run;
  const facts = [run.ended ? `stopped: ${run.stop_reason}` : "did not end", seconds(run.seconds)];
  if (context.chars) facts.push(`${context.name}: ${number(context.chars)} characters`);
  if (usage.calls !== undefined) facts.push(count(usage.turns, "turn"), count(usage.calls, "call"), count(usage.input_tokens + usage.output_tokens, "token"));
  facts.push(usage.cost === null || usage.cost === undefined ? "cost not known" : money(usage.cost));
  if (run.models.length) facts.push(run.models.join(", "));
  put(byId("facts"), facts.join(" · "));
  put(byId("answer"), run.answer.text || (run.ended ? "(no answer)" : "(the run did not end)"));
  if (run.answer.chars > run.answer.text.length) make("p", `${number(run.answer.chars - run.answer.text.length)} more characters are not in this report`, byId("answer").parentNode, "more");
  run.warnings.forEach((warning) => make("li", warning, byId("warnings")));
}

function drawCitations() {
  if (!run.citations.length) { byId("cited").hidden = true; return; }
  run.citations.forEach((it, n) => {
    const li = make("li", undefined, byId("citations"));
    li.id = `citation-${n + 1}`;
    const details = make("details", undefined, li);
    const summary = make("summary", undefined, details);
    make("span", `“${line(it.quote, 160)}”`, summary, "quote");
    put(summary, ` — ${it.source}, characters ${number(it.start)} to ${number(it.end)}`);
    const place = make("pre", undefined, details);
    put(place, it.before);
    put(make("mark", "", place), it.quote);
    put(place, it.after);
  });
}

function begin() {
  drawHead();
  drawCitations();
  drawCoverage();
  drawStrip();
  Object.entries(run.spent).forEach(([name, rows]) => rows.length && table(name, rows));
  const tops = declare();
  tops.forEach((path) => { show(path, byId("tree")); nodes.get(path).element.open = true; });
  key(byId("colours"), [["plan", "turn"], ["cell", "cell"], ["nested", "nested RLM"], ["call", "call"], ["bad", "without an answer"]]);
  const found = bars();
  drawTime(found);
  window.addEventListener("resize", () => drawTime(found));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawTime(found));
  byId("search").addEventListener("submit", (event) => { event.preventDefault(); seek(1); });
  byId("previous").addEventListener("click", () => seek(-1));
  byId("fold").addEventListener("click", () => document.querySelectorAll("#tree details[open] details[open]").forEach((each) => (each.open = false)));
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== byId("words")) { event.preventDefault(); byId("words").focus(); }
  });
}
begin();
