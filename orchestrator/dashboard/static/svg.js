// Making SVG elements, and numbers on axes.
const SPACE = "http://www.w3.org/2000/svg";

export function add(parent, tag, attributes, words) {
  const element = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (words !== undefined) element.textContent = words;
  parent.append(element);
  return element;
}

// About `most` round numbers from `low` to `high`, and how far they are apart.
export function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * size).find((s) => s >= rough);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k === 0 ? 0 : k * step);
  return [found, step];
}

export const whole = (value) => Math.round(value).toLocaleString("en-US");

// Four significant digits, as the server writes a loss.
export function exact(value) {
  if (value === null || value === undefined) return "not a number";
  const size = Math.abs(value);
  if (size === 0 || size >= 1e6 || size < 1e-3) return Number(value.toPrecision(4)).toString();
  return value.toLocaleString("en-US", { minimumSignificantDigits: 4, maximumSignificantDigits: 4 });
}

// A number on an axis whose ticks are `step` apart: no more digits than they need.
export function onAxis(value, step) {
  if (value === 0) return "0";
  if (Math.abs(value) >= 1e4) return `${Number((value / 1e3).toPrecision(4))}k`;
  if (Math.abs(value) >= 1e3) return whole(value);
  if (step < 1e-3) {
    const digits = Math.floor(Math.log10(Math.abs(value)) + 1e-9) - Math.floor(Math.log10(step) + 1e-9);
    return value.toExponential(Math.max(0, digits)).replace(/(\.0+|(\.\d*?)0+)?e-/, "$2e−");
  }
  return value.toFixed(Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
}
