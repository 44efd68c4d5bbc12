// Where pictures come from: chosen, dropped (folders too), pasted, or taken by the camera. Knows nothing of answers.

const SIDE = 208; // of a thumbnail, twice what is shown

/** Files of a file input, each with its path below the chosen folder. */
export function fromInput(input) {
  return [...input.files].map((file) => ({ name: file.webkitRelativePath || file.name, file }));
}

/** What a drop or a paste holds, folders read at any depth; sorted by path. Call it before the event has ended. */
export async function fromTransfer(transfer) {
  const entries = [...transfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const found = [];
  for (const entry of entries) await collect(entry, found);
  return found.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
}

async function collect(entry, found) {
  if (entry === null) return;
  if (entry instanceof File) {
    found.push({ name: entry.name, file: entry });
  } else if (entry.isFile) {
    const file = await new Promise((done, fail) => entry.file(done, fail));
    found.push({ name: entry.fullPath.replace(/^\//, ""), file });
  } else if (entry.isDirectory) {
    const reader = entry.createReader();
    for (;;) { // a reader gives a hundred at a time
      const some = await new Promise((done, fail) => reader.readEntries(done, fail));
      if (!some.length) break;
      for (const each of some) await collect(each, found);
    }
  }
}

/** Of a folder, files whose ending is no picture's are passed over and counted; what was named itself is sent. */
export function split(items, suffixes) {
  const isPicture = ({ name }) => !name.includes("/") || suffixes.some((suffix) => name.toLowerCase().endsWith(suffix));
  const pictures = items.filter(isPicture);
  return { pictures, passedOver: items.length - pictures.length };
}

/** Start the camera in a video element; gives the function that stops it. */
export async function startCamera(video) {
  if (!navigator.mediaDevices) throw new Error("Browsers give the camera to https and to this machine (127.0.0.1) alone.");
  const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
  video.srcObject = stream;
  await video.play();
  return () => {
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
  };
}

/** What the video shows now, as a JPEG. */
export function takePicture(video) {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
}

/** A small copy as an address of its own, so that no large picture stays in memory; none where the browser cannot decode it. */
export async function makeThumbnail(blob) {
  try {
    const bitmap = await createImageBitmap(blob);
    const scale = Math.min(1, SIDE / bitmap.width, SIDE / bitmap.height);
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    return URL.createObjectURL(await new Promise((done) => canvas.toBlob(done, "image/webp", 0.85)));
  } catch { // the server's own words stand beside it
    return null;
  }
}
