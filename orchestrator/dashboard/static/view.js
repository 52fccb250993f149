// What all step charts of a page share: the columns, the window of steps, and the cursor.

export class View extends EventTarget {
  figures = null;
  chosen = null; // [first, last] after a zoom by hand
  share = 1; // the newest part of all steps that is shown
  cursor = null; // index of a column

  get last() {
    return this.figures?.step.at(-1) ?? 0;
  }

  get window() {
    if (this.chosen) return this.chosen;
    return [Math.floor(this.last * (1 - this.share)), Math.max(this.last, 1)];
  }

  // Columns of one key are appended; another key replaces everything.
  take(figures) {
    const old = this.figures;
    if (old && old.key === figures.key && figures.from_step > 1) append(old, figures);
    else this.figures = figures;
    this.changed();
  }

  show(share) {
    this.share = share;
    this.zoom(null);
  }

  zoom(range) {
    this.chosen = range && range[1] > range[0] ? range : null;
    this.changed();
  }

  point(index) {
    const most = (this.figures?.step.length ?? 0) - 1;
    this.cursor = index === null || most < 0 ? null : Math.max(0, Math.min(most, index));
    this.dispatchEvent(new Event("cursor"));
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  // The column that holds `step`, or the nearest one.
  at(step) {
    const steps = this.figures.step;
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1;
      else high = middle;
    }
    const before = low > 0 && step - steps[low - 1] < steps[low] - step;
    return before ? low - 1 : low;
  }

  // The attempt whose step this is, in the history that counts.
  attemptOf(step) {
    return this.figures.attempts.findLast((a) => a.resumed_from < step) ?? null;
  }
}

function append(old, fresh) {
  const seen = old.step.at(-1) ?? 0;
  const from = fresh.step.findIndex((step) => step > seen);
  if (from >= 0) {
    old.step.push(...fresh.step.slice(from));
    for (const [name, series] of Object.entries(fresh.series)) {
      old.series[name].mean.push(...series.mean.slice(from));
    }
  }
  const known = new Set(old.evals.map(([step]) => step));
  old.evals.push(...fresh.evals.filter(([step]) => !known.has(step)));
  old.attempts = fresh.attempts;
}
