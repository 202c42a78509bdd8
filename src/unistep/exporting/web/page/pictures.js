// Pictures as pixels of a model, and back as PNG files.

// Pixels 0 ... 255 of the largest central part of a picture, at a size: channel after channel. `rgba` is a row of pixels
// as a canvas gives them, laid on white where it is transparent.
export function fitted({ data, width, height }, [channels, goalHeight, goalWidth]) {
  const scale = Math.min(width / goalWidth, height / goalHeight);
  const [w, h] = [Math.max(1, Math.min(width, even(goalWidth * scale))), Math.max(1, Math.min(height, even(goalHeight * scale)))];
  const [left, top] = [Math.floor((width - w) / 2), Math.floor((height - h) / 2)];
  const planes = asPlanes(data).map((plane) => {
    const part = new Uint8Array(w * h);
    for (let y = 0; y < h; y++) part.set(plane.subarray((top + y) * width + left, (top + y) * width + left + w), y * w);
    return resized(part, w, h, goalWidth, goalHeight);
  });
  if (channels === 1) return grey(planes);
  const out = new Uint8Array(3 * goalHeight * goalWidth);
  planes.forEach((plane, c) => out.set(plane, c * plane.length));
  return out;
}

const even = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

const grey = ([red, green, blue]) => red.map((r, p) => (r * 19595 + green[p] * 38470 + blue[p] * 7471 + 0x8000) >> 16);

function asPlanes(data) {
  const count = data.length / 4, planes = Array.from({ length: 3 }, () => new Uint8Array(count));
  for (let p = 0; p < count; p++) {
    const alpha = data[4 * p + 3];
    for (let c = 0; c < 3; c++) planes[c][p] = Math.round((data[4 * p + c] * alpha + 255 * (255 - alpha)) / 255);
  }
  return planes;
}

// Lanczos, whose support grows with the reduction; rounded to 8 bits after the columns and after the rows, as Pillow does.
function resized(plane, width, height, goalWidth, goalHeight) {
  const wide = width === goalWidth ? plane : along(plane, width, height, goalWidth);
  if (height === goalHeight) return wide;
  return turned(along(turned(wide, goalWidth, height), height, goalWidth, goalHeight), goalHeight, goalWidth);
}

function turned(plane, width, height) {
  return Uint8Array.from(plane, (_, i) => plane[(i % height) * width + Math.floor(i / height)]);
}

function along(plane, width, height, goal) {
  const scale = width / goal, stretch = Math.max(scale, 1), support = 3 * stretch;
  const sinc = (x) => (x ? Math.sin(Math.PI * x) / (Math.PI * x) : 1), lanczos = (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0);
  const out = new Uint8Array(goal * height);
  for (let x = 0; x < goal; x++) {
    const centre = (x + 0.5) * scale;
    const from = Math.max(0, Math.trunc(centre - support + 0.5)), to = Math.min(width, Math.trunc(centre + support + 0.5));
    const weights = Array.from({ length: to - from }, (_, i) => lanczos((i + from - centre + 0.5) / stretch));
    const sum = weights.reduce((a, b) => a + b, 0);
    const whole = weights.map((weight) => Math.round((weight / sum) * 2 ** 22));
    for (let y = 0; y < height; y++) {
      let value = 2 ** 21;
      for (let i = 0; i < whole.length; i++) value += whole[i] * plane[y * width + from + i];
      out[y * goal + x] = Math.min(255, Math.max(0, Math.floor(value / 2 ** 22)));
    }
  }
  return out;
}

// True where a pixel is known: a mask is white where to paint. It is brought to the size by its nearest pixels.
export function knownPixels({ data, width, height }, goalHeight, goalWidth) {
  const painted = grey(asPlanes(data)), known = [];
  const scale = Math.min(width / goalWidth, height / goalHeight);
  const [left, top] = [(width - goalWidth * scale) / 2, (height - goalHeight * scale) / 2];
  for (let y = 0; y < goalHeight; y++) for (let x = 0; x < goalWidth; x++) {
    known.push(painted[Math.floor(top + (y + 0.5) * scale) * width + Math.floor(left + (x + 0.5) * scale)] < 128);
  }
  return known;
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let i = 0; i < 8; i++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function chunk(kind, data) {
  const out = new Uint8Array(data.length + 12), view = new DataView(out.buffer);
  view.setUint32(0, data.length);
  for (let i = 0; i < 4; i++) out[4 + i] = kind.charCodeAt(i);
  out.set(data, 8);
  let crc = ~0;
  for (let i = 4; i < data.length + 8; i++) crc = CRC[(crc ^ out[i]) & 255] ^ (crc >>> 8);
  view.setUint32(data.length + 8, ~crc);
  return out;
}

// A PNG of pixels, channel after channel; 1 is grey and 3 red, green and blue.
export async function encodePng(pixels, [channels, height, width]) {
  const lines = new Uint8Array(height * (1 + width * channels)), plane = width * height;
  for (let y = 0, at = 0; y < height; y++) {
    at++; // the line's filter: none
    for (let x = 0; x < width; x++) for (let c = 0; c < channels; c++) lines[at++] = pixels[c * plane + y * width + x];
  }
  const packed = await new Response(new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"))).arrayBuffer();
  const head = new Uint8Array(13), view = new DataView(head.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  head[8] = 8;
  head[9] = channels === 1 ? 0 : 2;
  return new Blob([Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10), chunk("IHDR", head), chunk("IDAT", new Uint8Array(packed)), chunk("IEND", new Uint8Array())], { type: "image/png" });
}

export async function pngUrl(pixels, shape) {
  const bytes = new Uint8Array(await (await encodePng(pixels, shape)).arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
  return `data:image/png;base64,${btoa(text)}`;
}
