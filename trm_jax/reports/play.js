// The network in the browser: the forward pass of models/network.py for blocks that mix by "mlp" or "units", the
// recursion y_z, and tries that differ by symmetries or by guesses (inference/guesses.py). Arrays are Float32Array, row
// by row; T tokens, D width, S cells, V vocabulary.
"use strict";

// a [n, k] @ b [k, m] -> [n, m]
function product(a, b, n, k, m) {
  const out = new Float32Array(n * m);
  for (let i = 0; i < n; i++)
    for (let j = 0; j < k; j++) {
      const x = a[i * k + j];
      if (x === 0) continue;
      for (let c = 0, from = j * m, to = i * m; c < m; c++) out[to + c] += x * b[from + c];
    }
  return out;
}

function transposed(a, n, m) {
  const out = new Float32Array(n * m);
  for (let i = 0; i < n; i++) for (let j = 0; j < m; j++) out[j * n + i] = a[i * m + j];
  return out;
}

// [n, 2m], gates then values -> silu(gates) * values * scale [n, m]
function gated(both, n, m, scale = 1) {
  const out = new Float32Array(n * m);
  for (let i = 0; i < n; i++)
    for (let j = 0; j < m; j++) {
      const gate = both[2 * i * m + j];
      out[i * m + j] = scale * both[2 * i * m + m + j] * gate / (1 + Math.exp(-gate));
    }
  return out;
}

function normed(h, change, D, eps) {  // rms norm of h + change over features
  for (let i = 0; i < h.length; i += D) {
    let squares = 0;
    for (let j = i; j < i + D; j++) { h[j] += change[j]; squares += h[j] * h[j]; }
    const scale = 1 / Math.sqrt(squares / D + eps);
    for (let j = i; j < i + D; j++) h[j] *= scale;
  }
  return h;
}

class Network {
  constructor({arch, units, weights, L}) {
    const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
    this.w = {};
    for (const [name, of] of Object.entries(weights)) this.w[name] = new Float32Array(bytes(of).buffer);
    Object.assign(this, arch, {units, L});
    this.T = this.S * Math.max(1, this.values);
    this.blocks = Array.from({length: this.layers}, (_, i) => {
      const of = name => this.w[`params/layers_${i}/${name}`];
      const mixer = this.mixer === "mlp" ? {up: transposed(of("mixer/gate_up"), this.T, 2 * this.mixer_hidden),
        down: transposed(of("mixer/down"), this.mixer_hidden, this.T)}
        : {up: of("mixer/gate_up"), down: of("mixer/down")};
      return {mixer, up: of("mlp/gate_up"), down: of("mlp/down")};
    });
  }

  mixed({up, down}, h) {
    const {T, D, S, units, mixer_hidden: m, values} = this;
    if (this.mixer === "mlp") {  // along tokens; its gates are the first rows
      const both = product(up, h, 2 * m, T, D), hidden = new Float32Array(m * D);
      for (let i = 0; i < m * D; i++) hidden[i] = both[m * D + i] * both[i] / (1 + Math.exp(-both[i]));
      return product(down, hidden, T, m, D);
    }
    const kinds = units.length + (values ? 1 : 0), each = Math.max(1, values);
    const hidden = gated(product(h, up, T, D, 2 * kinds * m), T, kinds * m, 1 / 3), out = new Float32Array(T * D);
    const send = (kind, count, group) => {  // each token's hidden values to its group; what the group holds to each
      const sums = new Float32Array(count * m);
      for (let t = 0; t < T; t++)
        for (let j = 0, to = group(t) * m, from = (t * kinds + kind) * m; j < m; j++) sums[to + j] += hidden[from + j];
      const sent = product(sums, down.subarray(kind * m * D, (kind + 1) * m * D), count, m, D);
      for (let t = 0; t < T; t++)
        for (let j = 0, from = group(t) * D; j < D; j++) out[t * D + j] += sent[from + j];
    };
    units.forEach((of, kind) => send(kind, (Math.max(...of) + 1) * each,
      t => of[Math.floor(t / each)] * each + t % each));
    if (values) send(kinds - 1, S, t => Math.floor(t / values));
    return out;
  }

  core(state, injection) {
    const {T, D, eps, mlp_hidden: m} = this;
    let h = state.map((x, i) => x + injection[i]);
    for (const {mixer, up, down} of this.blocks) {
      h = normed(h, this.mixed(mixer, h), D, eps);
      h = normed(h, product(gated(product(h, up, T, D, 2 * m), T, m), down, T, m, D), D, eps);
    }
    return h;
  }

  begin(tokens) {  // tokens [S] -> the state before the first cycle
    const {T, D, S, values, w} = this, x = new Float32Array(T * D), root = Math.fround(Math.sqrt(D));
    for (let t = 0; t < T; t++) {
      const token = tokens[values ? Math.floor(t / values) : t];
      const row = !values ? token : token < 2 ? 0 : token === 2 + t % values ? 1 : 2;
      for (let j = 0; j < D; j++) x[t * D + j] = root * w["params/embed_tokens"][row * D + j];
    }
    const start = name => Float32Array.from({length: T * D}, (_, i) => w[`fixed/${name}`][i % D]);
    return {x, y: start("H_init"), z: start("L_init"), residual: null};
  }

  cycle({x, y, z}) {
    const before = [y, z], puzzle = y.map((value, i) => value + x[i]);
    for (let i = 0; i < this.L; i++) z = this.core(z, puzzle);
    y = this.core(y, z);
    let moved = 0, size = 0;
    [y, z].forEach((now, k) => now.forEach((value, i) => {
      moved += (value - before[k][i]) ** 2;
      size += value * value;
    }));
    return {x, y, z, residual: Math.sqrt(moved / Math.max(size, 1e-38))};
  }

  logits({y}) {  // [S, V]
    const {T, D, S, V, values, w} = this;
    if (!values) return product(y, w["params/lm_head"] || transposed(w["params/embed_tokens"], V, D), S, D, V);
    const scores = product(y, w["params/lm_head"], T, D, 1);
    return Float32Array.from({length: S * V}, (_, i) => i % V < 2 ? -1e9
      : scores[Math.floor(i / V) * values + i % V - 2]);
  }

  probabilities(state) {  // [S, V]
    const {S, V} = this, p = this.logits(state);
    for (let s = 0; s < S; s++) {
      const cell = p.subarray(s * V, (s + 1) * V), most = Math.max(...cell);
      let sum = 0;
      cell.forEach((logit, v) => { cell[v] = Math.exp(logit - most); sum += cell[v]; });
      cell.forEach((_, v) => { cell[v] /= sum; });
    }
    return p;
  }
}

// Rules: no value twice in a group of a unit.

class Rules {
  constructor({units, names, characters, V}) {
    Object.assign(this, {units, names, characters, V});
  }

  twice(tokens) {  // [[kind, group, token, how often]]
    const found = [];
    this.units.forEach((of, kind) => {
      const count = new Map();
      tokens.forEach((token, s) => {
        const key = of[s] * 256 + token;
        if (token > 1) count.set(key, (count.get(key) || 0) + 1);
      });
      for (const [key, n] of count) if (n > 1) found.push([kind, key >> 8, key & 255, n]);
    });
    return found.sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]);
  }

  explain(inputs, answer) {  // why it is not right; "" if it is
    const [first, ...more] = this.twice(answer);
    if (first) {
      const [kind, group, token, n] = first;
      return `${this.names[kind]} ${group + 1} has ${["two", "three"][n - 2] || n} ${this.characters[token]}s`
        + (more.length ? ` and ${more.length} more like that` : "");
    }
    return [answer.some(token => token < 2) && "cells are left open",
      inputs.some((token, s) => token > 1 && token !== answer[s]) && "a clue was changed"].filter(Boolean).join("; ");
  }

  faults(inputs, answer) {
    const wrong = new Set(this.twice(answer).map(([kind, group, token]) => `${kind} ${group} ${token}`));
    return answer.map((token, s) => inputs[s] > 1 ? inputs[s] !== token
      : this.units.some((of, kind) => wrong.has(`${kind} ${of[s]} ${token}`)));
  }

  allowed(tokens) {  // [S][V]: what no clue forbids
    const held = this.units.map(of => tokens.reduce((sets, token, s) => {
      if (token > 1) (sets[of[s]] ||= new Set()).add(token);
      return sets;
    }, {}));
    return tokens.map((token, s) => Array.from({length: this.V}, (_, v) => v > 1 && (token > 1 ? v === token
      : !this.units.some((of, kind) => held[kind][of[s]]?.has(v)))));
  }
}

// How tries differ.

function generator(seed) {  // mulberry32: the same numbers for the same seed
  return () => {
    seed = seed + 0x6D2B79F5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, seed | 1);
    t = t + Math.imul(t ^ t >>> 7, t | 61) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 4294967296;
  };
}

// As Sudoku.draw_symmetry: {cells: which cell each is read from, relabel}.
function symmetry(random, [height, width], V) {
  const side = height * width;
  const shuffled = n => Array.from({length: n}, (_, i) => [random(), i]).sort((a, b) => a[0] - b[0])
    .map(pair => pair[1]);
  const lines = thick => shuffled(side / thick).flatMap(group => shuffled(thick).map(line => group * thick + line));
  const turn = height === width && random() < .5, rows = lines(height), columns = lines(width);
  return {relabel: [0, 1, ...shuffled(V - 2).map(v => v + 2)], cells: rows.flatMap(row => columns.map(column =>
    turn ? column * side + row : row * side + column))};
}

const CONFLICT_COST = .1, LEAST = 2e-3, SPREAD = .3, RESTART = 128;  // as in guesses.py

class Search {  // best first; a node is the puzzle with some cells guessed
  constructor(rules, inputs, random) {
    Object.assign(this, {rules, inputs, random, order: 0, nodes: 0, stretch: RESTART, anew: RESTART});
    this.first = {cost: 0, order: -1, tokens: inputs};
    this.queue = [this.first];
  }

  next() {  // the cheapest node, or undefined
    if (this.nodes >= this.anew) {
      this.stretch *= 2;
      this.anew = this.nodes + this.stretch;
      this.queue = [this.first];
    }
    this.nodes++;
    let best = 0;
    this.queue.forEach(({cost, order}, i) => {
      const than = this.queue[best];
      if (cost < than.cost || cost === than.cost && order < than.order) best = i;
    });
    return this.queue.splice(best, 1)[0];
  }

  part({tokens, cost}, p, answer) {  // by the values of one cell, whose two likeliest share it most evenly
    const {rules, random} = this, V = rules.V, allowed = rules.allowed(tokens);
    const open = [...tokens.keys()].filter(s => tokens[s] < 2);
    if (!open.length || allowed.some(values => !values.some(Boolean))) return;
    const shares = new Map(open.map(s => {
      const q = allowed[s].map((may, v) => may ? p[s * V + v] + 1e-6 : 0), sum = q.reduce((a, b) => a + b);
      return [s, q.map(x => x / sum)];
    }));
    const second = new Map(open.map(s => [s, [...shares.get(s)].sort((a, b) => b - a)[1]]));
    const most = Math.max(...second.values()), good = open.filter(s => second.get(s) >= (1 - SPREAD) * most);
    const cell = good[Math.floor(random() * good.length)];
    const filled = tokens.map((token, s) => token > 1 ? token : answer[s]);
    const clashes = rules.twice(filled).reduce((sum, [, , , n]) => sum + n * (n - 1) / 2, 0);
    allowed[cell].forEach((may, v) => {
      if (!may) return;
      const child = tokens.slice();
      child[cell] = v;
      this.queue.push({cost: cost + CONFLICT_COST * clashes - Math.log(Math.max(shares.get(cell)[v], LEAST)),
        order: this.order++, tokens: child});
    });
  }
}

// Frames of the tries of a puzzle (a plain array of tokens), up to one that the rules accept.
async function* played(inputs, {network, rules, vary, box, max_cycles, guess_cycles, settle, tries, seed = 0}) {
  const random = generator(seed), V = network.V;
  const search = vary === "guess" ? new Search(rules, inputs, random) : null;
  for (let attempt = 1; attempt <= tries; attempt++) {
    const node = search && attempt > 1 ? search.next() : null;
    if (search && attempt > 1 && !node) return;
    const asked = node ? node.tokens : inputs, turned = !search && attempt > 1 ? symmetry(random, box, V) : null;
    let state = network.begin(turned ? turned.cells.map(s => turned.relabel[asked[s]]) : asked);
    let p = null, answer = null;
    const cycles = !node ? max_cycles : guess_cycles * (node === search.first ? 2 : 1);
    for (let cycle = 1, still = 0; cycle <= cycles && !(still >= settle && !node); cycle++) {
      await new Promise(resolve => setTimeout(resolve));  // so that the page can be drawn, and used
      state = network.cycle(state);
      const seen = network.probabilities(state), before = answer;
      p = seen;
      if (turned) {
        p = new Float32Array(seen.length);
        turned.cells.forEach((s, here) => turned.relabel.forEach((to, v) => { p[s * V + v] = seen[here * V + to]; }));
      }
      answer = inputs.map((_, s) => {
        let best = 0;
        for (let v = 1; v < V; v++) if (p[s * V + v] > p[s * V + best]) best = v;
        return best;
      });
      still = before && answer.every((token, s) => token === before[s]) ? still + 1 : 0;
      const words = rules.explain(inputs, answer);
      yield {attempt, cycle, inputs, asked, tokens: answer, sure: answer.map((v, s) => p[s * V + v]),
        faults: rules.faults(inputs, answer), words, residual: state.residual};
      if (words === "") return;
    }
    if (node) search.part(node, p, answer);
  }
}
