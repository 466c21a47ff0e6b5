"use strict";
// The page's whole life: it asks for a game, shows each position with what the search thinks of it, and asks for the next.

const SPEEDS = [1, 2, 4, 8, 15, 60]; // steps per second
const SIMULATIONS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256];
const KEPT_VALUES = 400;
const ACTION_KEYS = "0123456789abcdefgh";
const ARROWS = { ArrowLeft: "LEFT", ArrowRight: "RIGHT", ArrowUp: "UP", ArrowDown: "DOWN" };
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const token = new URLSearchParams(location.hash.slice(1)).get("token");

let game = null; // the last state that the server sent
let playing = false;
let takenOver = false;
let busy = false;
let timer = 0;
let values = [];
let lastMove = null; // the person's: {action, state} with the search that preceded it

async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const method = body === undefined ? "GET" : "POST";
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.detail || answer.statusText);
  return told;
}

/** Runs one request at a time; what goes wrong is said, and stops the play. */
async function once(action) {
  if (busy) return;
  busy = true;
  try {
    await action();
  } catch (error) {
    setPlaying(false);
    byId("told").textContent = error.message;
  } finally {
    busy = false;
  }
}

const simulations = () => SIMULATIONS[Number(byId("simulations").value)];

const newGame = () =>
  once(async () => {
    values = [];
    lastMove = null;
    byId("told").textContent = "";
    show(await ask("/v1/games", { num_simulations: simulations() }));
  });

const step = (action = null) =>
  once(async () => {
    if (!game || game.done) return;
    const before = game;
    const after = await ask(`/v1/games/${game.id}/step`, { action, num_simulations: simulations() });
    lastMove = action === null ? null : { action, state: before };
    show(after);
    if (after.done) {
      setPlaying(false);
      byId("told").textContent = `The game is over with a return of ${number(after.episode_return)}. n begins a new one.`;
    }
  });

const searchAgain = () =>
  once(async () => {
    if (!game || game.done) return;
    values.pop();
    show(await ask(`/v1/games/${game.id}/search`, { num_simulations: simulations() }));
  });

function setPlaying(wanted) {
  playing = wanted && !takenOver;
  byId("play").setAttribute("aria-pressed", String(playing));
  byId("play").textContent = playing ? "Pause" : "Play";
  clearTimeout(timer);
  if (playing) tick();
}

async function tick() {
  const started = performance.now();
  await step();
  if (!playing) return;
  const period = 1000 / SPEEDS[Number(byId("speed").value)];
  timer = setTimeout(tick, Math.max(0, period - (performance.now() - started)));
}

function setTakenOver(wanted) {
  takenOver = wanted;
  byId("takeover").setAttribute("aria-pressed", String(wanted));
  byId("takeover").textContent = wanted ? "Give back" : "Take over";
  if (wanted) setPlaying(false);
  byId("told").textContent = wanted ? "You play: choose an action below, or by its key." : "";
  if (game) drawActions();
}

function show(state) {
  game = state;
  values.push(state.value);
  if (values.length > KEPT_VALUES) values.shift();
  byId("frame").src = state.frame;
  byId("frame").alt = `step ${state.step}, chosen action ${state.action_names[state.action]}`;
  byId("n-step").textContent = state.step;
  byId("n-return").textContent = number(state.episode_return);
  byId("n-value").textContent = state.value.toFixed(3);
  byId("n-network").textContent = state.network_value.toFixed(3);
  drawActions();
  drawValues();
  drawPrefixes();
  drawImagined();
  if (lastMove) tellOfMove();
}

/** What the search thought of the person's move. */
function tellOfMove() {
  const { action, state } = lastMove;
  const name = (index) => state.action_names[index];
  const visits = (index) => `${percent(state.visit_policy[index])} of its policy, Q\u00a0${state.qvalues[index].toFixed(3)}`;
  byId("told").textContent =
    action === state.action
      ? `You took ${name(action)}, as the search would have (${visits(action)}).`
      : `You took ${name(action)} (${visits(action)}); the search would have taken ${name(state.action)} (${visits(state.action)}).`;
}

function drawActions() {
  const body = byId("actions");
  const focused = document.activeElement && document.activeElement.dataset.action;
  body.replaceChildren();
  const mostVisits = Math.max(1, ...game.visits);
  const [low, high] = range(game.qvalues.filter((_, index) => game.visits[index] > 0));
  game.action_names.forEach((name, index) => {
    const row = body.insertRow();
    const legal = !game.legal || game.legal[index];
    row.classList.toggle("chosen", index === game.action);
    row.classList.toggle("mine", Boolean(lastMove) && lastMove.action === index);
    row.classList.toggle("illegal", !legal);
    row.insertCell().append(takenOver ? actionButton(name, index, legal) : name);
    const visited = game.visits[index] > 0;
    bar(row.insertCell(), "v", game.visits[index] / mostVisits, String(game.visits[index]));
    bar(row.insertCell(), "p", game.prior[index], percent(game.prior[index]));
    const q = game.qvalues[index];
    const share = high > low ? (q - low) / (high - low) : 1;
    bar(row.insertCell(), "q", visited ? 0.05 + 0.95 * share : 0, visited ? q.toFixed(3) : "–");
  });
  if (focused !== undefined) body.querySelector(`[data-action="${focused}"]`)?.focus();
}

function actionButton(name, index, legal) {
  const button = document.createElement("button");
  const key = ACTION_KEYS[index];
  button.textContent = key && key !== name ? `${key} ${name}` : name;
  button.dataset.action = index;
  button.disabled = !legal || game.done;
  button.addEventListener("click", () => step(index));
  return button;
}

function bar(cell, kind, share, text) {
  const box = document.createElement("div");
  box.className = "bar";
  const chart = element("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  chart.append(element("rect", { class: kind, width: 100 * Math.min(1, Math.max(0, share)), height: 10 }));
  const label = document.createElement("span");
  label.textContent = text;
  box.append(chart, label);
  cell.append(box);
}

function drawValues() {
  const chart = byId("values");
  const [low, high] = range([0, ...values]);
  const y = (value) => 100 - (90 * (value - low)) / (high - low || 1);
  const x = (index) => (400 * index) / Math.max(1, values.length - 1);
  const points = values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  chart.replaceChildren(
    element("line", { class: "zero", x1: 0, x2: 400, y1: y(0), y2: y(0) }),
    element("polyline", { points: values.length > 1 ? points : `0,${y(values[0])} 400,${y(values[0])}` }),
  );
  const extremes = range(values).map((value) => value.toFixed(2));
  byId("values-told").textContent = `${extremes.join(" to ")}; the thin line is zero`;
  chart.setAttribute("aria-label", `root value over the last ${values.length} steps, from ${extremes.join(" to ")}`);
}

function drawPrefixes() {
  const chart = byId("prefixes");
  const line = game.principal_line;
  const [low, high] = range([0, ...line.map((node) => node.value_prefix)]);
  const y = (value) => 100 - (90 * (value - low)) / (high - low || 1);
  const width = 400 / Math.max(5, line.length);
  chart.replaceChildren(element("line", { class: "zero", x1: 0, x2: 400, y1: y(0), y2: y(0) }));
  line.forEach((node, index) => {
    const [top, bottom] = [y(Math.max(0, node.value_prefix)), y(Math.min(0, node.value_prefix))];
    const shape = { x: index * width + 2, y: top, width: width - 4, height: Math.max(1, bottom - top) };
    chart.append(element("rect", shape));
  });
  const steps = line.map((node) => `${node.name}\u00a0${node.value_prefix.toFixed(2)}`);
  byId("line").textContent = steps.length ? steps.join(" → ") : "no search, no line";
}

/** The position as the network keeps it, then what it expects after each step of the line; of a server with a decoder. */
function drawImagined() {
  byId("imagination").hidden = game.imagined.length === 0;
  const names = ["now", ...game.principal_line.map((node) => node.name)];
  const items = game.imagined.map((frame, index) => {
    const [item, picture, name] = ["li", "img", "span"].map((kind) => document.createElement(kind));
    picture.src = frame;
    picture.alt = index ? `imagined after step ${index}` : "the position, decoded";
    name.textContent = names[index];
    item.append(picture, name);
    return item;
  });
  byId("imagined").replaceChildren(...items);
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  return made;
}

const range = (numbers) => (numbers.length ? [Math.min(...numbers), Math.max(...numbers)] : [0, 0]);
const percent = (share) => `${(100 * share).toFixed(0)} %`;
const number = (value) => String(Math.round(value * 1000) / 1000);

/** The action that an arrow key means here: Pong's LEFT, say. */
function actionOfKey(key) {
  if (key in ARROWS) return game.action_names.findIndex((name) => name.toUpperCase() === ARROWS[key]);
  const index = key.length === 1 ? ACTION_KEYS.indexOf(key) : -1;
  return index < game.action_names.length ? index : -1;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const onControl = ["INPUT", "BUTTON"].includes(event.target.tagName);
  if (takenOver && game && !(event.target.tagName === "INPUT" && event.key.startsWith("Arrow"))) {
    const action = actionOfKey(event.key);
    if (action >= 0) {
      event.preventDefault();
      step(action);
      return;
    }
  }
  const does = {
    " ": () => !onControl && setPlaying(!playing),
    ".": () => step(),
    n: newGame,
    t: () => setTakenOver(!takenOver),
    "+": () => moveSimulations(1),
    "-": () => moveSimulations(-1),
  }[event.key];
  if (!does || (event.key === " " && onControl)) return;
  event.preventDefault();
  does();
}

function moveSimulations(by) {
  const slider = byId("simulations");
  slider.value = Number(slider.value) + by;
  tellSliders();
  searchAgain();
}

function tellSliders() {
  byId("speed-told").textContent = SPEEDS[Number(byId("speed").value)];
  byId("simulations-told").textContent = simulations() || "0 (no search)";
}

async function begin() {
  byId("play").addEventListener("click", () => setPlaying(!playing));
  byId("step").addEventListener("click", () => step());
  byId("new").addEventListener("click", newGame);
  byId("takeover").addEventListener("click", () => setTakenOver(!takenOver));
  byId("speed").addEventListener("input", tellSliders);
  byId("simulations").addEventListener("input", tellSliders);
  byId("simulations").addEventListener("change", () => !playing && searchAgain());
  document.addEventListener("keydown", onKey);
  try {
    const about = await ask("/v1/metadata");
    const nearest = SIMULATIONS.findLastIndex((count) => count <= about.num_simulations);
    byId("simulations").value = Math.max(0, nearest);
    tellSliders();
    byId("about").textContent = `${about.env} · trained for ${about.num_updates} updates, with ${about.num_simulations} simulations`;
  } catch (error) {
    byId("about").textContent = error.message;
    return;
  }
  await newGame();
}

begin();
