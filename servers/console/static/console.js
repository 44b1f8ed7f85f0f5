// What pages do beside htmx: follow a job as it goes on, say when a part cannot be fetched, choose all rows of a table, and hold back a
// second press of a button.
"use strict";

const follow = (place) => {
  const stream = new EventSource(place.dataset.stream);
  const told = place.querySelector("[data-connection]");
  stream.onopen = () => { told.hidden = true; };
  stream.onerror = () => { // where it was not refused, the browser connects again by itself
    told.hidden = false;
    const isRefused = stream.readyState === EventSource.CLOSED;
    told.querySelector("[data-trying]").hidden = isRefused;
    told.querySelector("[data-refused]").hidden = !isRefused;
  };
  stream.addEventListener("now", (event) => { place.querySelector("[data-now]").innerHTML = event.data; });
  stream.addEventListener("end", () => { stream.close(); window.location.reload(); });
  window.addEventListener("pagehide", () => stream.close());
};

document.querySelectorAll("[data-stream]").forEach(follow);

document.addEventListener("htmx:sendError", (event) => {
  const notice = document.createElement("div");
  notice.className = "notice bad";
  notice.setAttribute("role", "alert");
  notice.textContent = "The server cannot be reached. Load the page again.";
  event.detail.target.replaceChildren(notice);
});

document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-all]")) return;
  event.target.closest("form").querySelectorAll("tbody input[type=checkbox]").forEach((box) => { box.checked = event.target.checked; });
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post" || event.defaultPrevented) return;
  setTimeout(() => form.querySelectorAll("button").forEach((button) => { button.disabled = true; }));
});

window.addEventListener("pageshow", () => document.querySelectorAll("form button[disabled]").forEach((button) => { button.disabled = false; }));
