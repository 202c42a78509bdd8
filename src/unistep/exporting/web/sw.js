// The service worker of an exported page: keeps its files for visits without a network, and sends the headers that a plain
// static host does not: isolation, without which there are no threads, and the policy by which nothing comes from elsewhere.

importScripts("files.js");

const SCOPE = self.registration.scope, OWN = `unistep ${SCOPE} `, CACHE = OWN + FILES.version;
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Content-Security-Policy": FILES.policy,
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
};

async function tell(message) {
  for (const client of await self.clients.matchAll({ includeUncontrolled: true, type: "window" })) client.postMessage(message);
}

async function install() {
  const cache = await caches.open(CACHE), total = FILES.first.reduce((sum, [, bytes]) => sum + bytes, 0);
  let loaded = 0;
  for (const [name] of FILES.first) {
    const request = new Request(new URL(name, SCOPE), { cache: "no-cache" }), answer = await fetch(request);
    if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
    const parts = [], reader = answer.body.getReader();
    for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
      parts.push(value);
      loaded += value.length;
      if (parts.length % 16 === 0) await tell({ loaded, total });
    }
    await cache.put(request.url, new Response(new Blob(parts), { headers: { "Content-Type": FILES.types[name.split(".").pop()] ?? "application/octet-stream" } }));
    await tell({ loaded, total });
  }
  await self.skipWaiting();
}

async function activate() {
  for (const name of await caches.keys()) if (name.startsWith(OWN) && name !== CACHE) await caches.delete(name);
  await self.clients.claim();
}

async function answer(request) {
  const url = new URL(request.url), name = url.href.split(/[?#]/)[0].slice(SCOPE.length) || "index.html";
  const cache = await caches.open(CACHE), key = new URL(name, SCOPE).href;
  let found = await cache.match(key);
  if (!found) {
    found = await fetch(request);
    if (found.ok && FILES.later.includes(name)) await cache.put(key, found.clone());
  }
  const headers = new Headers(found.headers);
  for (const [header, value] of Object.entries(HEADERS)) headers.set(header, value);
  return new Response(found.body, { status: found.status, statusText: found.statusText, headers });
}

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && request.url.startsWith(SCOPE)) event.respondWith(answer(request));
});
