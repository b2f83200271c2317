// An image to ask about: dropped, pasted, chosen, or drawn.

import { element } from "./form.js";
import { word } from "./words.js";

const PEN = 0.09; // of the canvas's width

/** `size`: height and width that the model is given. Drawings have its size and its colours. */
export function picture(size, mode, chosen) {
  const [height, width] = size;
  const canvas = element("canvas", { width, height, tabIndex: 0 });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", word.draw);
  const input = element("input", { type: "file", id: "file", accept: "image/*" });
  const clear = element("button", { type: "button", textContent: word.clear });
  const drop = element("div", { className: "drop" }, element("p", { textContent: word.drop }), element("label", { htmlFor: "file", textContent: `${word.choose} ` }), input, canvas, clear);
  const context = canvas.getContext("2d");
  let file = null;
  let drawn = false;

  async function take(given) {
    if (!given) return;
    file = given;
    drawn = false;
    const bitmap = await createImageBitmap(given).catch(() => null);
    context.clearRect(0, 0, width, height);
    if (bitmap) context.drawImage(bitmap, 0, 0, width, height);
    chosen();
  }

  function blank() {
    file = null;
    drawn = false;
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
  }

  let last = null;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  };
  canvas.onpointerdown = (event) => {
    if (!drawn) blank();
    canvas.setPointerCapture(event.pointerId);
    last = at(event);
    stroke(last);
  };
  canvas.onpointermove = (event) => last && stroke(at(event));
  canvas.onpointerup = async () => {
    last = null;
    file = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    chosen();
  };

  function stroke(to) {
    drawn = true;
    Object.assign(context, { strokeStyle: "#fff", lineWidth: PEN * width, lineCap: "round" });
    context.beginPath();
    context.moveTo(...last);
    context.lineTo(...to);
    context.stroke();
    last = to;
  }

  input.onchange = () => take(input.files[0]);
  clear.onclick = blank;
  drop.ondragover = (event) => {
    event.preventDefault();
    drop.classList.add("over");
  };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files[0]);
  };
  blank();
  return { element: drop, file: () => file, take, paste: (event) => take(event.clipboardData?.files[0]) };
}

/** The example of a manifest: base64url. */
export function fromBase64(text) {
  const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
  return new Blob([bytes], { type: bytes[0] === 0x89 ? "image/png" : bytes[0] === 0xff ? "image/jpeg" : "image/webp" });
}
