// A page to type puzzles into: what is asked is solved by the network in the page (play.js), or by the service that the
// page came from, and shown as it comes.
"use strict";
const {ask} = data, box_ = $("text"), editable = !walled && !hued;
let chosen = null, working = null;  // the cell that is typed into; the AbortController of the puzzle at work

const local = ask.weights ? {...ask, network: new Network(ask), V: ask.arch.V,
  rules: new Rules({...ask, characters, V: ask.arch.V})} : null;

function tell(text, bad = false) {
  $("told").textContent = text;
  $("told").className = bad ? "bad" : "";
}

// Text -> tokens; throws an Error that says what is wrong.
function read(text) {
  const lines = text.split(/\r?\n/), drawn = /^[-+|=*: \u2500-\u257f]*$/;
  const plain = lines.length > 1 ? lines.filter(line => !drawn.test(line)) : lines;
  const found = [...plain.join("")].filter(c => !/[\s\u2500-\u257f|+,;:'"[\]]/.test(c)).map(c => {
    const token = ask.symbols[c] ?? ("*_xX-?".includes(c) ? 1 : undefined);
    if (token === undefined) throw new Error(`${JSON.stringify(c)} is no cell of a puzzle`);
    return token;
  });
  if (found.length !== size) throw new Error(`got ${count(found.length, "cell")}, expected ${size}`);
  return found;
}

function draw(tokens) {  // the puzzle, before anything is thought
  films.length = 0;
  $("pick").replaceChildren();
  $("choice").hidden = true;
  film = {name: "puzzle", inputs: tokens, asked: tokens, frames: []};
  choose(-1);
}

function follow() {  // what is typed, where it can be read already
  halt();
  tell("");
  if (editable) try { draw(read(box_.value)); } catch { draw(new Array(size).fill(1)); }
}

function take(frame) {
  let current = films.at(-1);
  const fresh = !current || current.attempt !== frame.attempt, along = fresh || at === last(film);
  if (fresh) {
    const {attempt, inputs, asked} = frame;
    current = {attempt, name: `try ${attempt}`, inputs, asked, frames: []};
    films.push(current);
    $("pick").add(new Option(current.name));
    if (films.length > 300) { films.splice(1, 1); $("pick").remove(1); }
    $("choice").hidden = films.length < 2;
    if (along) { choose(films.length - 1); $("pick").selectedIndex = films.length - 1; }
  }
  const before = last(current) ? current.frames.at(-1).tokens : current.asked;
  if (frame.tokens.some((token, s) => token !== before[s])) current.stands = frame.cycle;
  current.frames.push(frame);
  $("pick").options[films.length - 1].text = `${current.name}: ${frame.words || data.verified_as}`;
  if (film !== current) return;
  $("slider").max = last(film);
  drawChart();
  show(along ? last(film) : at);
}

// The service's frames, and its answer as the last one.
async function* streamed(text, signal) {
  const reply = await fetch("solve?stream=true", {method: "POST", body: text, signal});
  if (!reply.ok) throw new Error((await reply.json()).error);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", id = null; ;) {
    const {value, done} = await reader.read();
    const lines = (rest + (value || "")).split("\n");
    rest = lines.pop();
    for (const line of lines.map(JSON.parse)) {
      if (id !== null && line.id !== id) continue;  // one puzzle is shown
      id = line.id;
      if ("verified" in line) { yield {answer: line}; return; }
      yield {attempt: line.try, cycle: line.cycle, words: line.says, residual: line.residual,
        inputs: bytes(line.inputs), asked: bytes(line.asked), tokens: bytes(line.tokens),
        sure: Array.from(bytes(line.sure), p => p / 255),
        faults: Array.from({length: size}, (_, s) => unpacked(bytes(line.faults), s) === 1)};
    }
    if (done) throw new Error("the service has ended the answer early");
  }
}

function here(text) {  // the same from the network in this page
  const inputs = read(text), [clash] = local.rules.twice(inputs);
  if (clash) throw new Error(`the clues contradict each other: ${local.rules.explain(inputs, inputs)}`);
  return played(inputs, local);
}

function halt() {
  working?.abort();
  working = null;
  $("halt").hidden = true;
}

async function solve() {
  follow();
  const mine = working = new AbortController(), begun = performance.now();
  $("halt").hidden = false;
  chosen = null;
  tell("thinking");
  try {
    let frame = null;
    for await (frame of local ? here(box_.value) : streamed(box_.value, mine.signal)) {
      if (mine.signal.aborted) return;
      if (!frame.answer) take(frame);
      if (!frame.answer && frame.attempt > 1) tell(`thinking: try ${frame.attempt}`);
    }
    const right = frame?.answer ? frame.answer.verified : frame?.words === "";
    const tries = frame?.answer?.try ?? frame?.attempt;
    const seconds = ((performance.now() - begun) / 1000).toFixed(1);
    tell(right ? `${data.verified_as} in ${seconds} s, try ${tries}` : `not solved after ${seconds} s: `
      + (frame?.answer?.reason ?? frame?.words), !right);
  } catch (error) {
    if (!mine.signal.aborted) tell(error.message, true);
  } finally {
    if (working === mine) halt();
  }
}

let next = 0;
function example() {
  box_.value = ask.examples[next++ % ask.examples.length];
  follow();
}

function pick(s) {
  if (chosen !== null) cells[chosen].cell.classList.remove("chosen");
  chosen = s;
  if (s !== null) cells[s].cell.classList.add("chosen");
}

function type(s, token) {  // a puzzle that was solved is typed into as a new one
  const tokens = Array.from(film.inputs);
  tokens[s] = token;
  box_.value = tokens.map(t => t > 1 ? characters[t] : ".").join("");
  follow();
  pick(s);
}

grid.addEventListener("click", event => {
  const s = cells.findIndex(({cell}) => cell === event.target);
  if (editable && s >= 0) pick(s);
});
document.addEventListener("keydown", event => {  // before the keys of the film
  if (chosen === null || event.target.closest("select, textarea")) return;
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const moves = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns};
  const token = ["Backspace", "Delete"].includes(event.key) ? 1 : ask.symbols[event.key];
  if (event.key in moves) pick(Math.min(Math.max(chosen + moves[event.key], 0), size - 1));
  else if (event.key === "Escape") pick(null);
  else if (event.key === "Enter") solve();
  else if (token !== undefined) type(chosen, token);
  else return;
  event.preventDefault();
  event.stopImmediatePropagation();
}, true);
$("ask").addEventListener("submit", event => { event.preventDefault(); solve(); });
box_.addEventListener("input", follow);
$("halt").addEventListener("click", () => { halt(); tell("stopped"); });
$("example").addEventListener("click", example);
$("example").hidden = !ask.examples.length;
$("ask").hidden = false;
if (ask.examples.length) example();
