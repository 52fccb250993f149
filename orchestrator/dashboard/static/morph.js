// Turns the page into a newer telling of itself without losing focus, open stories or charts.

// Elements with an id are followed wherever they move; the rest pair up in order.
export function morph(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE || isKept(old)) return;
  if (old.isEqualNode(fresh)) return;
  attributes(old, fresh);
  children(old, fresh);
}

// A dialog is a person's own only while it is open: closed, it follows what the run can do now.
function isKept(old) {
  return old.hasAttribute("data-keep") && (old.nodeName !== "DIALOG" || old.open);
}

function attributes(old, fresh) {
  for (const { name, value } of fresh.attributes) {
    if (!mine(old, name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    if (!mine(old, name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
}

// What a person set on this page stays as they set it.
function mine(element, name) {
  if (name === "open") return element.nodeName === "DETAILS";
  if (name === "aria-pressed") return true;
  return name === "hidden" && element.hasAttribute("data-lens-view");
}

function children(old, fresh) {
  const named = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
  let here = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    const same = next.id ? named.get(next.id) : here && !here.id && here.nodeName === next.nodeName ? here : null;
    if (!same) {
      old.insertBefore(next, here);
      continue;
    }
    if (same === here) here = here.nextSibling;
    else old.insertBefore(same, here);
    morph(same, next);
  }
  while (here) {
    const gone = here;
    here = here.nextSibling;
    gone.remove();
  }
}
