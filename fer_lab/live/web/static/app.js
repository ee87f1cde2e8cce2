// The page of the demo. Frames go to /api/frame one at a time; boxes, bars and the timeline are drawn here.
"use strict";

const $ = (id) => document.getElementById(id);
const WIDEST = 960; // frames are sent no wider than this
const TIMELINE_S = 60;
const NO_FACE_HINT_S = 6;

const token = readToken();
const stream = crypto.randomUUID ? crypto.randomUUID() : String(Math.random());
const state = {
  mode: "idle", // idle | camera | video | image | server
  paused: false, mirror: true, showInput: false, labels: [], colours: {}, result: null, points: [], lastFaceS: 0, spoken: "",
  media: null, objectUrl: null, turn: 0, recorder: null, frames: [],
};
let grab = document.createElement("canvas"); // the frame on its way
let seen = document.createElement("canvas"); // the frame that the result belongs to

function readToken() {
  const given = new URLSearchParams(location.search).get("token");
  if (given) sessionStorage.setItem("token", given);
  return given || sessionStorage.getItem("token") || "";
}

async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}), ...(token ? { "X-Token": token } : {}) };
  const reply = await fetch(path, { ...options, headers });
  const body = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Error(body.error || `the server answered ${reply.status}`);
  return body;
}

function say(text, lasting = false) {
  const box = $("message");
  box.textContent = text;
  box.hidden = !text;
  clearTimeout(say.timer);
  if (text && !lasting) say.timer = setTimeout(() => { box.hidden = true; }, 4000);
}

// ---- the model -------------------------------------------------------------------------------------------------

async function readModel() {
  const model = await ask("/model");
  state.colours = model.colours;
  $("model").textContent = model.shown;
  $("runtime").textContent = `${model.runtime} · ${model.precision}`;
  $("detector").textContent = model.detectors[0];
  $("turn").disabled = !model.shadow;
  $("next-detector").disabled = model.detectors.length < 2;
  $("banner").hidden = !model.banner;
  if (model.banner) $("banner").textContent = `${model.shown}: ${model.banner}`;
  if (model.shadow) $("shadow-name").textContent = `${model.shadow} differs`;
  setLabels(model.card.labels);
}

function setLabels(labels) {
  if (labels.join() === state.labels.join()) return;
  state.labels = labels;
  state.points = [];
  const list = $("bars");
  list.replaceChildren(...labels.map((label) => {
    const row = document.createElement("li");
    const name = document.createElement("span");
    name.textContent = label;
    const track = document.createElement("span");
    track.className = "track";
    const fill = document.createElement("span");
    fill.className = "fill";
    fill.style.display = "block";
    fill.style.setProperty("--colour", state.colours[label] || "#94a3b8");
    track.append(fill);
    const value = document.createElement("span");
    value.className = "value";
    value.textContent = "–";
    row.append(name, track, value);
    return row;
  }));
}

// ---- sources ---------------------------------------------------------------------------------------------------

async function startCamera() {
  const turn = await stop();
  if (!navigator.mediaDevices || !navigator.mediaDevices.getUserMedia) {
    say("This browser gives a page the camera only on localhost or over https.", true);
    return;
  }
  let media;
  try {
    media = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 }, height: { ideal: 720 } }, audio: false });
  } catch (error) {
    if (turn !== state.turn) return;
    const reasons = { NotAllowedError: "The camera was not permitted. Allow it in the address bar, then try again.",
      NotFoundError: "No camera was found. Plug one in, or open a file.", NotReadableError: "The camera is busy in another program." };
    say(reasons[error.name] || `The camera does not start: ${error.message}`, true);
    return;
  }
  if (turn !== state.turn) { for (const track of media.getTracks()) track.stop(); return; } // something else was started meanwhile
  state.media = media;
  const track = media.getVideoTracks()[0];
  track.addEventListener("ended", () => { say("The camera is gone. Plug it in and start again.", true); stop(true); });
  const video = $("video");
  video.srcObject = media;
  try { await video.play(); } catch (error) { if (turn === state.turn) throw error; return; }
  if (turn === state.turn) begin("camera");
}

async function openFile(file) {
  if (!file) return;
  await stop();
  state.objectUrl = URL.createObjectURL(file);
  if (file.type.startsWith("video/")) {
    const video = $("video");
    video.src = state.objectUrl;
    video.loop = true;
    try { await video.play(); } catch (error) { say(`${file.name} does not play in this browser.`, true); await stop(true); return; }
    begin("video");
    return;
  }
  const image = $("still");
  image.src = state.objectUrl;
  try { await image.decode(); } catch (error) { say(`${file.name} is not an image that this browser can show.`, true); await stop(true); return; }
  begin("image");
  await sendOnce();
}

async function startServer() {
  await stop();
  begin("server");
  showStream(state.turn);
}

function showStream(turn) {
  const image = $("still");
  image.onerror = () => { image.onerror = null; pause(1000).then(() => { if (turn === state.turn) showStream(turn); }); };
  image.src = `/api/stream.mjpeg?${token ? `token=${encodeURIComponent(token)}&` : ""}at=${Date.now()}`;
}

function begin(mode) {
  state.mode = mode;
  state.paused = false;
  state.turn += 1;
  state.lastFaceS = now();
  state.frames = [];
  $("welcome").hidden = true;
  $("video").hidden = mode === "image" || mode === "server";
  $("still").hidden = !(mode === "image" || mode === "server");
  for (const id of ["pause", "snapshot", "record", "stop"]) $(id).disabled = false;
  if (mode === "image") $("pause").disabled = $("record").disabled = true;
  applyMirror();
  say("");
  if (mode === "camera" || mode === "video") loop(state.turn);
  if (mode === "server") follow(state.turn);
}

async function stop(keepMessage = false) { // → the turn of what is started next, unless something else was meanwhile
  const turn = state.turn += 1;
  state.mode = "idle";
  if (state.recorder) stopRecording();
  if (state.media) { for (const track of state.media.getTracks()) track.stop(); state.media = null; }
  const video = $("video");
  video.pause();
  video.srcObject = null;
  video.removeAttribute("src");
  $("still").onerror = null;
  $("still").removeAttribute("src");
  $("still").classList.remove("lost");
  if (state.objectUrl) { URL.revokeObjectURL(state.objectUrl); state.objectUrl = null; }
  state.result = null;
  $("video").hidden = $("still").hidden = true;
  $("welcome").hidden = false;
  for (const id of ["pause", "snapshot", "record", "stop"]) $(id).disabled = true;
  press("pause", false);
  if (!keepMessage) say("");
  drawOverlay();
  show(null);
  return turn;
}

// ---- frames ----------------------------------------------------------------------------------------------------

const now = () => performance.now() / 1000;

async function loop(turn) {
  let failures = 0;
  while (turn === state.turn) {
    if (state.paused || document.hidden || $("video").readyState < 2) { await pause(60); continue; }
    try {
      await sendOnce();
      failures = 0;
    } catch (error) {
      failures += 1;
      say(failures > 2 ? `No answer from the server (${error.message}). Trying again…` : error.message, failures > 2);
      await pause(Math.min(4000, 250 * 2 ** failures));
    }
    await pause(0);
  }
}

const pause = (ms) => new Promise((done) => { setTimeout(done, ms); });

async function sendOnce() {
  const turn = state.turn;
  const still = state.mode === "image";
  const origin = still ? $("still") : $("video");
  const width = still ? origin.naturalWidth : origin.videoWidth;
  const height = still ? origin.naturalHeight : origin.videoHeight;
  if (!width || !height) { await pause(30); return; }
  const factor = Math.min(1, (still ? 2560 : WIDEST) / Math.max(width, height));
  grab.width = Math.max(2, Math.round(width * factor));
  grab.height = Math.max(2, Math.round(height * factor));
  grab.getContext("2d", { alpha: false }).drawImage(origin, 0, 0, grab.width, grab.height);
  const blob = await new Promise((done) => { grab.toBlob(done, "image/jpeg", 0.88); });
  if (!blob) throw new Error("this frame could not be encoded");
  const headers = { "Content-Type": "image/jpeg", "X-Stream": stream, ...(still ? { "X-Still": "1" } : {}), ...(state.showInput ? { "X-Input": "1" } : {}) };
  const result = await ask("/api/frame", { method: "POST", body: blob, headers });
  if (turn !== state.turn) return;
  [grab, seen] = [seen, grab];
  state.frames.push(now());
  if (state.frames.length > 40) state.frames.shift();
  const span = state.frames[state.frames.length - 1] - state.frames[0];
  result.fps = span > 0 ? (state.frames.length - 1) / span : 0;
  take(result);
}

async function follow(turn) {
  while (turn === state.turn) {
    try {
      const answer = await ask("/api/state");
      if (turn !== state.turn) return;
      press("pause", answer.paused);
      press("record", answer.recording);
      if (answer.result) take(answer.result);
      else if (answer.status && state.result) { state.result = null; show(null); }
      $("still").classList.toggle("lost", Boolean(answer.status));
      if (answer.error) say(answer.error, true);
      else if (answer.status) say(answer.status, true);
      else if (answer.ended) { say("The source has ended.", true); return; }
      else if (!$("message").hidden && follow.lost) say("signal is back");
      follow.lost = Boolean(answer.status);
    } catch (error) { say(`No answer from the server (${error.message}).`, true); await pause(1000); }
    await pause(80);
  }
}

function take(result) {
  if (state.paused) return;
  state.result = result;
  setLabels(result.labels);
  const face = result.faces[0];
  const time = now();
  const fresh = state.mode !== "server" || result.time_s !== take.last; // a source that stands still draws no line
  take.last = result.time_s;
  if (state.mode !== "image" && fresh) {
    state.points.push({ time, probs: face ? face.probs : null });
    while (state.points.length && state.points[0].time < time - TIMELINE_S - 1) state.points.shift();
  }
  if (face) state.lastFaceS = time;
  else if (time - state.lastFaceS > NO_FACE_HINT_S) { say("No face found. Come closer, or turn on a light.", false); state.lastFaceS = time; }
  if (state.mode === "image" && !face) say("No face found in this image.", true);
  show(result);
  drawOverlay();
  if (result.trouble) say(result.trouble, true);
}

// ---- drawing ---------------------------------------------------------------------------------------------------

function show(result) {
  const face = result && result.faces[0];
  const rows = $("bars").children;
  const best = face ? face.probs.indexOf(Math.max(...face.probs)) : -1;
  for (let i = 0; i < rows.length; i += 1) {
    const p = face ? face.probs[i] : 0;
    rows[i].querySelector(".fill").style.transform = `translateX(${(p - 1) * 100}%)`;
    rows[i].querySelector(".value").textContent = face ? `${Math.round(p * 100)} %` : "–";
    rows[i].classList.toggle("top", i === best);
  }
  $("label").textContent = face ? face.label : (result ? "no face" : "no face yet");
  $("sublabel").textContent = face
    ? `${Math.round(face.confidence * 100)} % sure${result.faces.length > 1 ? ` · largest of ${result.faces.length} faces` : ""}`
    : "the largest face is read here";
  $("fps").textContent = result && state.mode !== "image" ? result.fps.toFixed(1) : "–";
  $("count").textContent = result ? String(result.faces.length) : "–";
  $("detect").textContent = result ? `${result.detect_ms.map((v) => v.toFixed(1)).join(" · ")} ms` : "–";
  $("classify").textContent = result ? `${result.classify_ms.map((v) => v.toFixed(1)).join(" · ")} ms` : "–";
  if (result) {
    if ($("model").textContent !== result.model) { $("model").textContent = result.model; readModel().catch(() => {}); }
    $("detector").textContent = result.detector;
    $("shadow-row").hidden = !result.compared;
    if (result.compared) $("shadow").textContent = `${result.disagreements} of ${result.compared}`;
  }
  speak(face);
  showInputs(result);
}

function speak(face) {
  const text = face ? face.label : "no face";
  if (text === state.spoken || now() - (speak.lastS || 0) < 2) return;
  state.spoken = text;
  speak.lastS = now();
  $("spoken").textContent = text;
}

function showInputs(result) {
  const box = $("inputs");
  const faces = state.showInput && result ? result.faces.filter((face) => face.input) : [];
  box.hidden = faces.length === 0;
  while (box.children.length > faces.length) box.lastChild.remove();
  while (box.children.length < faces.length) box.append(document.createElement("canvas"));
  faces.forEach((face, i) => {
    const canvas = box.children[i];
    [canvas.width, canvas.height] = face.input_size;
    const pixels = canvas.getContext("2d").createImageData(canvas.width, canvas.height);
    face.input.forEach((gray, k) => { pixels.data.set([gray, gray, gray, 255], 4 * k); });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  });
}

function mirrored() { return state.mode === "camera" && state.mirror; }

function applyMirror() {
  $("stage").classList.toggle("mirrored", mirrored());
  $("mirror").hidden = state.mode !== "camera" && state.mode !== "idle";
  press("mirror", state.mirror);
}

function drawOverlay() {
  const canvas = $("overlay");
  const bounds = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  const width = Math.round(bounds.width * ratio), height = Math.round(bounds.height * ratio);
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, width, height);
  const result = state.result;
  canvas.setAttribute("aria-label", describe(result));
  if (!result || state.mode === "server") return;
  const scale = Math.min(width / result.width, height / result.height);
  // The analysed frame itself lies under its boxes, so that they fit at any speed.
  const w = result.width * scale, h = result.height * scale, x = (width - w) / 2, y = (height - h) / 2;
  pen.save();
  if (mirrored()) { pen.translate(width, 0); pen.scale(-1, 1); }
  pen.drawImage(seen, x, y, w, h);
  pen.restore();
  paintFaces(pen, result, scale, (width - result.width * scale) / 2, (height - result.height * scale) / 2, ratio);
}

function paintFaces(pen, result, scale, left, top, ratio) {
  pen.textBaseline = "middle";
  for (const face of [...result.faces].reverse()) {
    const colour = state.colours[face.label] || "#94a3b8";
    let [x0, y0, x1, y1] = face.box;
    if (mirrored()) [x0, x1] = [result.width - x1, result.width - x0];
    const x = left + x0 * scale, y = top + y0 * scale, w = (x1 - x0) * scale, h = (y1 - y0) * scale;
    pen.strokeStyle = colour;
    pen.lineWidth = 2.5 * ratio;
    pen.shadowColor = "rgba(0,0,0,.65)";
    pen.shadowBlur = 4 * ratio;
    pen.beginPath();
    pen.roundRect(x, y, w, h, Math.min(12 * ratio, w / 6));
    pen.stroke();
    pen.shadowBlur = 0;
    const size = Math.max(12, Math.min(18, w / ratio / 9)) * ratio;
    pen.font = `600 ${size}px system-ui, "DejaVu Sans", sans-serif`;
    const text = `${face.label} ${Math.round(face.confidence * 100)} %`;
    const tagWidth = pen.measureText(text).width + size, tagHeight = size * 1.6;
    const tagX = Math.max(0, Math.min(pen.canvas.width - tagWidth, x));
    const tagY = y - tagHeight - 4 * ratio >= 0 ? y - tagHeight - 4 * ratio : y + 4 * ratio;
    pen.fillStyle = colour;
    pen.beginPath();
    pen.roundRect(tagX, tagY, tagWidth, tagHeight, tagHeight / 3);
    pen.fill();
    pen.fillStyle = inkOn(colour);
    pen.fillText(text, tagX + size / 2, tagY + tagHeight / 2 + ratio);
  }
}

function inkOn(colour) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b > 120 ? "#10131a" : "#ffffff";
}

function describe(result) {
  if (!result) return "no picture yet";
  if (!result.faces.length) return "no face in the picture";
  return `${result.faces.length} ${result.faces.length === 1 ? "face" : "faces"}: ${result.faces.map((f) => f.label).join(", ")}`;
}

function drawTimeline() {
  const canvas = $("timeline");
  const bounds = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  const width = Math.round(bounds.width * ratio), height = Math.round(bounds.height * ratio);
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const soft = style.getPropertyValue("--soft"), line = style.getPropertyValue("--line");
  pen.clearRect(0, 0, width, height);
  const left = 46 * ratio, bottom = height - 18 * ratio, right = width - 8 * ratio, top = 6 * ratio;
  pen.font = `${11 * ratio}px system-ui, "DejaVu Sans", sans-serif`;
  pen.fillStyle = soft;
  pen.strokeStyle = line;
  pen.lineWidth = ratio;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  for (const p of [0, 0.5, 1]) {
    const y = bottom - p * (bottom - top);
    pen.beginPath(); pen.moveTo(left, y); pen.lineTo(right, y); pen.stroke();
    pen.fillText(`${p * 100} %`, left - 6 * ratio, y);
  }
  pen.textAlign = "center";
  pen.textBaseline = "top";
  for (const s of [60, 45, 30, 15, 0]) {
    const x = right - (s / TIMELINE_S) * (right - left);
    pen.textAlign = s === 0 ? "right" : s === 60 ? "left" : "center";
    pen.fillText(s === 0 ? "now" : `−${s} s`, x, bottom + 5 * ratio);
  }
  const time = state.paused ? drawTimeline.frozen || now() : now();
  drawTimeline.frozen = time;
  pen.lineWidth = 2 * ratio;
  pen.lineJoin = "round";
  pen.save();
  pen.beginPath(); pen.rect(left, 0, right - left, height); pen.clip();
  state.labels.forEach((label, i) => {
    pen.strokeStyle = state.colours[label] || "#94a3b8";
    pen.beginPath();
    let open = false, before = 0;
    for (const point of state.points) {
      if (!point.probs || point.time - before > 1.5) open = false;
      before = point.time;
      if (!point.probs) continue;
      const x = right - ((time - point.time) / TIMELINE_S) * (right - left);
      const y = bottom - point.probs[i] * (bottom - top);
      if (open) pen.lineTo(x, y); else pen.moveTo(x, y);
      open = true;
    }
    pen.stroke();
  });
  pen.restore();
}

// ---- controls --------------------------------------------------------------------------------------------------

function press(id, on) { $(id).setAttribute("aria-pressed", String(Boolean(on))); }

async function control(what) {
  try { say((await ask("/api/control", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ do: what }) })).said); }
  catch (error) { say(error.message); }
}

async function togglePause() {
  if (state.mode === "server") { await control("pause"); return; }
  state.paused = !state.paused;
  if (state.mode === "video" || state.mode === "camera") { if (state.paused) $("video").pause(); else await $("video").play(); }
  press("pause", state.paused);
}

function composed(canvas = document.createElement("canvas")) {
  const result = state.result;
  canvas.width = seen.width;
  canvas.height = seen.height;
  const pen = canvas.getContext("2d");
  if (mirrored()) { pen.save(); pen.translate(canvas.width, 0); pen.scale(-1, 1); pen.drawImage(seen, 0, 0); pen.restore(); } else pen.drawImage(seen, 0, 0);
  if (result) paintFaces(pen, result, canvas.width / result.width, 0, 0, Math.max(1, canvas.height / 720));
  return canvas;
}

function save(blob, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `fer-${new Date().toISOString().slice(0, 19).replace(/[:T]/g, "-")}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function snapshot() {
  if (state.mode === "server") { await control("snapshot"); return; }
  if (!state.result) return;
  composed().toBlob((blob) => { save(blob, "png"); say("snapshot saved to your downloads"); }, "image/png");
}

async function toggleRecording() {
  if (state.mode === "server") { await control("record"); return; }
  if (state.recorder) { stopRecording(); return; }
  const canvas = composed();
  const recorder = new MediaRecorder(canvas.captureStream(25));
  const parts = [];
  const turning = setInterval(() => { if (state.result) composed(canvas); }, 40);
  recorder.addEventListener("dataavailable", (event) => { parts.push(event.data); });
  recorder.addEventListener("stop", () => { clearInterval(turning); save(new Blob(parts, { type: recorder.mimeType }), "webm"); say("recording saved to your downloads"); });
  recorder.start(1000);
  state.recorder = recorder;
  press("record", true);
  say("recording in this browser");
}

function stopRecording() {
  state.recorder.stop();
  state.recorder = null;
  press("record", false);
}

async function toggleInput() {
  state.showInput = !state.showInput;
  press("input", state.showInput);
  if (state.mode === "server") { await control("input"); return; }
  if (state.mode === "image") await sendOnce().catch((error) => say(error.message));
  else if (!state.showInput) showInputs(null);
}

const actions = {
  camera: startCamera, choose: () => $("file").click(), server: startServer, pause: togglePause, snapshot, record: toggleRecording,
  "next-detector": async () => { await control("detector"); if (state.mode === "image") await sendOnce(); },
  turn: async () => { await control("turn"); await readModel(); }, input: toggleInput,
  mirror: () => { state.mirror = !state.mirror; applyMirror(); drawOverlay(); }, stop: () => stop(),
};
for (const [id, action] of Object.entries(actions)) {
  $(id).addEventListener("click", () => { Promise.resolve(action()).catch((error) => say(error.message)); });
}
const keys = { " ": "pause", s: "snapshot", r: "record", d: "next-detector", m: "turn", i: "input", x: "mirror", q: "stop", Escape: "stop", c: "camera", o: "choose" };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && event.target instanceof HTMLButtonElement) return; // space presses the focused button
  const id = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!id || $(id).disabled || $(id).hidden) return;
  event.preventDefault();
  $(id).click();
});
$("file").addEventListener("change", (event) => { openFile(event.target.files[0]).catch((error) => say(error.message, true)); event.target.value = ""; });
const stage = $("stage");
stage.addEventListener("dragover", (event) => { event.preventDefault(); stage.classList.add("dropping"); });
stage.addEventListener("dragleave", () => stage.classList.remove("dropping"));
stage.addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("dropping");
  openFile(event.dataTransfer.files[0]).catch((error) => say(error.message, true));
});
new ResizeObserver(drawOverlay).observe(stage);

function tick() { drawTimeline(); setTimeout(() => requestAnimationFrame(tick), 66); }

async function main() {
  press("mirror", true);
  tick();
  try {
    await readModel();
    const answer = await ask("/api/state");
    if (answer.error) say(answer.error, true);
    state.showInput = answer.show_input;
    press("input", state.showInput);
    if (answer.source) { $("server").hidden = false; $("server").textContent = `Show ${answer.source}`; await startServer(); }
  } catch (error) { say(error.message, true); }
}
main();
