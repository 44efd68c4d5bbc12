// The page: pictures go to /predict, a few at the same time, and answers become cards.

import { fromInput, fromTransfer, makeThumbnail, split, startCamera, takePicture } from "./pictures.js";
import { differ, fillCard, makeCard, showAnswer, summarize, toCsv } from "./results.js";

const [FEW, AT_ONCE] = [32, 4]; // a few pictures go one after the other, so that they are timed alone
const MOST = 300; // cards in the page; the table has all
const PATIENCE_MS = 60_000; // for a server that is busy
const byId = (id) => document.getElementById(id);
const [cards, results, notice, progress] = ["cards", "results", "notice", "progress"].map(byId);

let info = null;
let rows = []; // answered: { name, file, card, answers, thumbnail, group, place, before }
let queue = [];
let running = 0;
let [groups, added] = [0, 0];
let showing = 0;
let generation = 0; // Clear leaves what is under way to itself
let stopCamera = null;

function tell(text) {
  notice.textContent = text;
  notice.hidden = !text;
}

async function start() {
  const response = await fetch("info");
  const answer = await response.json();
  if (!answer.ok) throw new Error([answer.error.message, answer.error.hint].join(" "));
  info = answer;
  const names = info.variants.map((variant) => variant.name);
  document.title = `${info.bundle.name} · edgekiln`;
  byId("bundle").textContent = info.bundle.name;
  byId("about").textContent = `${info.classes.length} classes · pictures of ${info.frame.width} × ${info.frame.height} · bundle ${info.bundle.digest.slice(0, 12)}`;
  byId("variants").replaceChildren(...info.variants.map((variant) => {
    const item = document.createElement("li");
    item.textContent = `${variant.name} · ${variant.backend} · ${variant.verdict}`;
    item.title = [variant.reason, variant.notice].filter(Boolean).join("; ");
    return item;
  }));
  document.body.classList.toggle("pair", names.length > 1);
  byId("only-different").hidden = names.length < 2;
  if (info.others.length && names.length < 2) {
    byId("accepted").textContent += ` To see two variants side by side, start it with --variant ${names[0]} --variant ${info.others[0]}.`;
  }
  const notices = info.variants.filter((variant) => variant.notice).map((variant) => `${variant.name} was ${variant.notice}`);
  tell(notices.join(" "));
}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

/** One picture to one variant; asked again while the server is busy. Never throws. */
async function ask(variant, blob) {
  const end = Date.now() + PATIENCE_MS;
  for (;;) {
    try {
      const response = await fetch(`predict?variant=${encodeURIComponent(variant)}`, {
        method: "POST", body: blob, headers: { "Content-Type": "application/octet-stream" },
      });
      if ([429, 503].includes(response.status) && Date.now() < end) {
        await pause(Number(response.headers.get("Retry-After")) || 1);
        continue;
      }
      const told = await response.json();
      return told.answers?.[0] ?? { error: told.error };
    } catch {
      return { error: { message: "The server did not answer.", hint: "Is it still running?" } };
    }
  }
}

async function askAll(blob) {
  if (blob.size > info.limits.body_bytes) {
    const error = { message: `The file has over ${info.limits.body_bytes} bytes.`, hint: "Scale it down." };
    return Object.fromEntries(info.variants.map(({ name }) => [name, { error }]));
  }
  const answers = {};
  for (const { name } of info.variants) answers[name] = await ask(name, blob); // one after the other: times stay comparable
  return answers;
}

function add(items) {
  if (!info) return;
  const { pictures, passedOver } = split(items, info.suffixes);
  const folder = passedOver ? `${passedOver} ${passedOver === 1 ? "file was" : "files were"} passed over: endings that are no picture's.` : "";
  tell(folder || (pictures.length ? "" : "There was no picture in it."));
  const [group, before] = [groups++, cards.firstElementChild]; // what comes later stands above
  for (const { name, file } of pictures) queue.push({ name, file, card: makeCard(name), answers: {}, group, place: added++, before });
  pump();
}

function pump() {
  while (queue.length && running < (queue.length + running > FEW ? AT_ONCE : 1)) {
    running += 1;
    const row = queue.shift();
    place(row);
    answerOne(row, generation);
  }
  show();
}

const fits = (row) => !byId("different").checked || differ(row.answers);

function place(row) {
  if (!fits(row)) row.card.remove();
  else if (!row.card.isConnected) cards.insertBefore(row.card, row.before?.isConnected ? row.before : null);
  if (cards.childElementCount > MOST) cards.lastElementChild.remove();
}

function placeAll() {
  const shown = rows.filter(fits).sort((a, b) => b.group - a.group || a.place - b.place);
  cards.replaceChildren(...shown.slice(0, MOST).map((row) => row.card));
}

async function answerOne(row, of) {
  const [answers, thumbnail] = await Promise.all([askAll(row.file), makeThumbnail(row.file)]);
  running -= 1;
  if (of === generation) {
    Object.assign(row, { answers, thumbnail, file: null });
    rows.push(row);
    fillCard(row.card, answers, thumbnail);
    place(row);
  }
  pump();
}

/** At most five times a second: with thousands of answers each look at all of them counts. */
function show() {
  showing ||= setTimeout(showNow, rows.length < 50 ? 0 : 200);
}

function showNow() {
  showing = 0;
  const pending = queue.length + running;
  results.hidden = !rows.length && !pending;
  document.body.classList.toggle("answered", !results.hidden);
  progress.hidden = !pending;
  progress.max = rows.length + pending;
  progress.value = rows.length;
  byId("summary").textContent = summarize(rows, info.variants.map((variant) => variant.name), pending, MOST);
  byId("save").disabled = !rows.length;
}

function clear() {
  generation += 1;
  for (const row of rows) if (row.thumbnail) URL.revokeObjectURL(row.thumbnail);
  [rows, queue] = [[], []];
  cards.replaceChildren();
  tell("");
  show();
  byId("choose").focus();
}

function save() {
  const link = document.createElement("a");
  const top = Math.max(1, ...rows.flatMap((row) => Object.values(row.answers).map((answer) => answer.top?.length ?? 0)));
  link.href = URL.createObjectURL(new Blob([toCsv([...rows].sort((a, b) => a.place - b.place), top)], { type: "text/csv" }));
  link.download = `${info.bundle.name}-answers.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function watchCamera() {
  const video = byId("video");
  const mine = stopCamera;
  while (stopCamera === mine) {
    const answers = await askAll(await takePicture(video));
    if (stopCamera !== mine) return;
    const named = info.variants.length > 1;
    byId("camera-answers").replaceChildren(...Object.entries(answers).map(([variant, answer]) => showAnswer(variant, answer, named)));
    await pause(0.1);
  }
}

async function toggleCamera() {
  const button = byId("camera");
  if (stopCamera) {
    stopCamera();
    stopCamera = null;
  } else {
    try {
      stopCamera = await startCamera(byId("video"));
      tell("");
      watchCamera();
    } catch (error) {
      tell(`The camera cannot be used: ${error.message}`);
    }
  }
  button.setAttribute("aria-expanded", String(stopCamera !== null));
  button.textContent = stopCamera ? "Stop the camera" : "Camera";
  byId("camera-view").hidden = !stopCamera;
}

async function keep() {
  const name = `camera-${new Date().toISOString().replaceAll(":", "-")}.jpg`;
  add([{ name, file: await takePicture(byId("video")) }]);
}

function listen() {
  for (const [button, input] of [["choose", "files"], ["choose-folder", "folder"]]) {
    byId(button).addEventListener("click", () => byId(input).click());
    byId(input).addEventListener("change", (event) => {
      add(fromInput(event.target));
      event.target.value = ""; // the same again is a change, too
    });
  }
  let depth = 0; // enter and leave come for each element on the way
  const mark = (change) => document.body.classList.toggle("dropping", (depth = Math.max(0, depth + change)) > 0);
  document.addEventListener("dragenter", (event) => { event.preventDefault(); mark(1); });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("dragleave", () => mark(-1));
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    mark(-depth);
    add(await fromTransfer(event.dataTransfer));
  });
  document.addEventListener("paste", async (event) => {
    if (event.clipboardData.files.length) add(await fromTransfer(event.clipboardData));
  });
  byId("camera").addEventListener("click", toggleCamera);
  byId("keep").addEventListener("click", keep);
  byId("save").addEventListener("click", save);
  byId("clear").addEventListener("click", clear);
  byId("different").addEventListener("change", placeAll);
}

listen();
start().catch((error) => tell(error.message));
