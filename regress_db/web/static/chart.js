/* One chart: points of one or several series along one x, over uPlot. It adds what uPlot leaves to its users: a hover box
   for the nearest point, the same by keyboard, marks, colours that follow the page, nothing drawn before it is seen.
   `views.js` says what the charts of each page show. No inline style is used, so that a strict policy holds. */
"use strict";
window.epwatch = window.epwatch || {};
(function (epwatch) {
  const NEAR_PX = 28;
  const DAY_S = 86400;
  const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const charts = new Set();
  const waiting = new Map();
  let palette = {};

  function colour(name) {
    if (!(name in palette)) palette[name] = getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
    return palette[name];
  }

  function significant(value, digits = 4) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    if (value === 0) return "0";
    const places = Math.max(0, Math.min(9, digits - 1 - Math.floor(Math.log10(Math.abs(value)))));
    return value.toLocaleString("en", { maximumFractionDigits: places, useGrouping: Math.abs(value) >= 1e4 });
  }

  function withUnit(value, unit) {
    if (value === null || value === undefined) return "–";
    if (unit === "µs" && Math.abs(value) >= 1e6) return significant(value / 1e6) + " s";
    if (unit === "µs" && Math.abs(value) >= 1e4) return significant(value / 1e3) + " ms";
    return significant(value) + (unit ? " " + unit : "");
  }

  function percent(change) {
    if (change === null || change === undefined) return "–";
    const value = change * 100;
    return (value < 0 ? "-" : "+") + Math.abs(value).toFixed(Math.abs(value) >= 99.5 ? 0 : 1) + " %";
  }

  function moment(seconds) {
    return new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC";
  }

  /* Dates in UTC and in ISO order, as everywhere else on the page. */
  function dates(plot, splits, axis, space, increment) {
    let before = "";
    return splits.map((split) => {
      const iso = new Date(split * 1000).toISOString();
      if (increment >= 360 * DAY_S) return iso.slice(0, 4);
      if (increment >= 27 * DAY_S) return iso.slice(0, 7);
      const head = increment >= DAY_S ? iso.slice(0, 4) : iso.slice(0, 10);
      const shown = increment >= DAY_S ? iso.slice(5, 10) : iso.slice(11, 16);
      const told = head === before ? shown : shown + "\n" + head;
      before = head;
      return told;
    });
  }

  /* Ticks of a logarithmic axis: round numbers where it spans little, 1-2-5 where it spans much. */
  function logSplits(plot, axis, low, high) {
    if (high / low < 6) {
      const rough = (high - low) / 5;
      const power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
      const splits = [];
      for (let tick = Math.ceil(low / step); tick * step <= high; tick += 1) splits.push(tick * step);
      return splits;
    }
    const splits = [];
    const factors = high / low > 1e4 ? [1] : [1, 2, 5];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const factor of factors) {
        const tick = factor * 10 ** power;
        if (tick >= low && tick <= high) splits.push(tick);
      }
    }
    return splits;
  }

  function element(name, kind, parent) {
    const made = document.createElement(name);
    made.className = kind;
    parent.append(made);
    return made;
  }

  /* Fill a hover box: the first line is its title. Only text, never markup: most of it comes from records. */
  function tell(box, lines) {
    const [title, ...rest] = lines.filter((line) => line);
    const bold = document.createElement("b");
    bold.textContent = title;
    box.replaceChildren(bold, rest.length ? "\n" + rest.join("\n") : "");
  }

  /* spec: points, in the order of x: {x, y, low, high, s, outside} (low, high: what is drawn around y; s: which series;
     outside: the scale of y does not stretch for it, it is told at the edge); series:
     {label, colour, line}; time, xLabel, yLabel, xValues, log, height; under, over: drawings below and above the points;
     say(point): lines for the hover box; href(point): where it leads to, "" for nowhere; marks: {x, lines, edge}, told
     where the pointer is near the mark's edge. */
  function Chart(figure, spec) {
    this.figure = figure;
    this.spec = spec;
    this.box = figure.querySelector(".canvas");
    this.log = Boolean(spec.log);
    this.chosen = -1;
    this.tip = element("div", "tip", figure);
    this.tip.hidden = true;
    this.said = element("div", "sr", figure);
    this.said.setAttribute("aria-live", "polite");
    this.build();
    this.listen();
    charts.add(this);
  }

  Chart.prototype.build = function () {
    if (this.plot) this.plot.destroy();
    const { spec } = this;
    const xs = spec.points.map((point) => point.x);
    const columns = spec.series.map(() => new Array(xs.length).fill(null));
    spec.points.forEach((point, place) => { columns[point.s][place] = point.y; });
    const font = "12px " + getComputedStyle(document.body).fontFamily;
    const axis = (label, more) => ({
      label, font, labelFont: font, stroke: () => colour("soft"), labelGap: 2,
      grid: { stroke: () => colour("line"), width: 1 }, ticks: { stroke: () => colour("line"), width: 1, size: 5 }, ...more,
    });
    const yAxis = axis(spec.yLabel, {
      size: 62,
      values: (plot, splits) => splits.map((split) => (split === null ? "" : significant(split))),
    });
    if (this.log) Object.assign(yAxis, { splits: logSplits, filter: (plot, splits) => splits });
    if (spec.yWhole) yAxis.incrs = WHOLE;
    const xAxis = axis(spec.xLabel, { space: spec.xSpace || (spec.time ? 74 : 60), size: spec.time ? 42 : 34 });
    if (spec.time) xAxis.values = dates;
    if (spec.xValues) Object.assign(xAxis, { values: (plot, splits) => splits.map(spec.xValues), incrs: WHOLE });
    this.plot = new uPlot({
      width: this.width(), height: spec.height || 320, pxAlign: 0,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC"),
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: true, y: false, setScale: true } },
      scales: {
        x: { time: Boolean(spec.time), range: (plot, low, high) => this.xRange(low, high) },
        y: { distr: this.log ? 3 : 1, range: () => this.yRange() },
      },
      axes: [xAxis, yAxis],
      series: [{}, ...spec.series.map((one) => ({
        spanGaps: true, width: one.line ? 1.25 : 0, stroke: () => colour(one.colour), points: { show: false },
        paths: one.line ? uPlot.paths.linear() : () => null,
      }))],
      hooks: {
        drawClear: [() => this.draw(spec.under)],
        draw: [() => this.draw(spec.over)],
        setCursor: [() => this.pointed()],
      },
    }, [xs, ...columns], this.box);
    this.ring = element("div", "ring", this.plot.over);
    this.ring.hidden = true;
  };

  /* Where a point is shown, from the plotting area's corner. */
  Chart.prototype.at = function (point) {
    const top = this.plot.valToPos(point.y, "y");
    return [this.plot.valToPos(point.x, "x"), Math.max(0, Math.min(this.plot.over.clientHeight, top))];
  };

  Chart.prototype.width = function () {
    return Math.max(260, Math.floor(this.box.clientWidth));
  };

  /* uPlot asks for the range of x first; that of y is of the points within it, with what is drawn around them. */
  Chart.prototype.xRange = function (low, high) {
    const { points, xEdges, time } = this.spec;
    const [first, last] = [points[0].x, points.at(-1).x];
    const air = (last - first) * 0.02 || (time ? DAY_S : 1);
    this.zoomed = low !== null && (low > first || high < last);
    this.xNow = this.zoomed ? [low, high] : xEdges ?? [first - air, last + air];
    return this.xNow;
  };

  Chart.prototype.yRange = function () {
    const [from, to] = this.xNow;
    let low = Infinity;
    let high = -Infinity;
    for (const point of this.spec.points) {
      if (point.y === null || point.outside || point.x < from || point.x > to) continue;
      low = Math.min(low, point.low ?? point.y);
      high = Math.max(high, point.high ?? point.y);
    }
    for (const edge of this.spec.yEdges ?? []) {
      low = Math.min(low, edge);
      high = Math.max(high, edge);
    }
    if (low > high) return [1, 10];
    if (this.log && low > 0) {
      const air = Math.max((high / low) ** 0.06, 1.02);
      return [low / air, high * air];
    }
    const air = (high - low) * 0.07 || Math.abs(high) * 0.05 || 1;
    return [low >= 0 ? Math.max(0, low - air) : low - air, high + air];
  };

  /* `pen` has the canvas and the places of values on it, in its own pixels, kept within the plotting area. */
  Chart.prototype.draw = function (drawing) {
    if (!drawing) return;
    const { ctx, bbox, scales } = this.plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    drawing({
      ctx, colour, ...bbox, ratio: uPlot.pxRatio, from: scales.x.min, to: scales.x.max, low: scales.y.min, high: scales.y.max,
      x: (value) => this.plot.valToPos(value, "x", true), y: (value) => this.plot.valToPos(value, "y", true),
    });
    ctx.restore();
  };

  Chart.prototype.listen = function () {
    let touch = false;
    let shownBefore = -1;
    this.box.addEventListener("pointerdown", (event) => {
      touch = event.pointerType === "touch";
      shownBefore = this.chosen;
    });
    this.box.addEventListener("mousedown", () => { this.byKey = false; });
    this.box.addEventListener("mousemove", () => { this.byKey = false; });
    this.box.addEventListener("click", (event) => {
      if (!this.plot.over.contains(event.target) || this.chosen < 0) return;
      // A finger has no hover: the first touch tells, the second opens.
      if (!touch || shownBefore === this.chosen) this.open();
    });
    this.box.addEventListener("keydown", (event) => this.key(event));
    this.box.addEventListener("focus", () => {
      if (this.chosen < 0 && this.box.matches(":focus-visible")) this.choose(this.step(this.spec.points.length, -1), true);
    });
    this.box.addEventListener("blur", () => this.choose(-1));
    new ResizeObserver(() => {
      const width = this.width();
      if (width !== this.plot.width) this.plot.setSize({ width, height: this.plot.height });
    }).observe(this.box);
  };

  /* The nearest point to the pointer, or the mark at whose edge it is. */
  Chart.prototype.pointed = function () {
    const { left, top } = this.plot.cursor;
    if (this.byKey) return;
    if (left === undefined || left < 0) {
      this.choose(-1);
      return;
    }
    const { points, marks } = this.spec;
    const height = this.plot.over.clientHeight;
    const edge = top < 22 ? "top" : top > height - 18 ? "bottom" : "";
    const near = edge && (marks || []).filter((mark) => mark.edge === edge && Math.abs(this.plot.valToPos(mark.x, "x") - left) <= 8);
    if (near && near.length) {
      this.chosen = -1;
      this.ring.hidden = true;
      this.show(near.flatMap((mark) => mark.lines), this.plot.valToPos(near[0].x, "x"), top);
      return;
    }
    const from = this.plot.posToVal(left - NEAR_PX, "x");
    const to = this.plot.posToVal(left + NEAR_PX, "x");
    let best = -1;
    let least = NEAR_PX ** 2;
    for (let place = this.first(from); place < points.length && points[place].x <= to; place += 1) {
      if (points[place].y === null) continue;
      const [x, y] = this.at(points[place]);
      const away = (x - left) ** 2 + (y - top) ** 2;
      if (away <= least) [best, least] = [place, away];
    }
    this.choose(best);
  };

  Chart.prototype.first = function (x) {
    let [low, high] = [0, this.spec.points.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.spec.points[middle].x < x) low = middle + 1;
      else high = middle;
    }
    return low;
  };

  Chart.prototype.choose = function (place, announce = false) {
    this.chosen = place;
    const point = this.spec.points[place];
    if (!point) {
      this.tip.hidden = true;
      this.ring.hidden = true;
      this.box.classList.remove("leads");
      return;
    }
    const lines = this.spec.say(point);
    const [left, top] = this.at(point);
    this.ring.hidden = false;
    this.ring.style.transform = `translate(${left - 7}px, ${top - 7}px)`;
    this.box.classList.toggle("leads", Boolean(this.spec.href && this.spec.href(point)));
    this.show(lines, left, top);
    if (announce) this.said.textContent = lines.filter((line) => line).join(", ");
  };

  Chart.prototype.show = function (lines, left, top) {
    tell(this.tip, lines);
    this.tip.hidden = false;
    const over = this.plot.over.getBoundingClientRect();
    const figure = this.figure.getBoundingClientRect();
    const x = over.left - figure.left + left;
    const y = over.top - figure.top + top;
    const { offsetWidth, offsetHeight } = this.tip;
    const beside = x + 14 + offsetWidth <= figure.width ? x + 14 : x - 14 - offsetWidth;
    this.tip.style.left = Math.max(0, Math.min(beside, figure.width - offsetWidth)) + "px";
    this.tip.style.top = Math.max(0, y + 14 + offsetHeight > figure.height ? y - 14 - offsetHeight : y + 14) + "px";
  };

  /* The next point with a value in this direction; in the same series once one is chosen. */
  Chart.prototype.step = function (from, direction, series) {
    const { points } = this.spec;
    for (let place = from + direction; place >= 0 && place < points.length; place += direction) {
      if (points[place].y !== null && (series === undefined || points[place].s === series)) return place;
    }
    return from >= 0 && from < points.length ? from : -1;
  };

  Chart.prototype.key = function (event) {
    const { points, series } = this.spec;
    const now = points[this.chosen];
    let place = this.chosen;
    const by = (times, direction) => {
      for (let time = 0; time < times; time += 1) place = this.step(place, direction, now && now.s);
    };
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    switch (event.key) {
      case "ArrowRight": by(1, 1); break;
      case "ArrowLeft": now ? by(1, -1) : (place = this.step(points.length, -1)); break;
      case "PageDown": by(10, 1); break;
      case "PageUp": by(10, -1); break;
      case "Home": place = this.step(-1, 1, now && now.s); break;
      case "End": place = this.step(points.length, -1, now && now.s); break;
      case "ArrowUp":
      case "ArrowDown": {
        if (!now || series.length < 2) return;
        const other = (now.s + (event.key === "ArrowUp" ? -1 : 1) + series.length) % series.length;
        const [before, after] = [this.step(place, -1, other), this.step(place, 1, other)];
        const distance = (one) => (points[one].s === other ? Math.abs(points[one].x - now.x) : Infinity);
        place = distance(before) <= distance(after) ? before : after;
        break;
      }
      case "Enter": this.open(); return;
      case "Escape": this.choose(-1); return;
      case "+": case "-": this.zoom(event.key === "+" ? 0.5 : 2); event.preventDefault(); return;
      case "0": this.zoom(Infinity); event.preventDefault(); return;
      default: return;
    }
    event.preventDefault();
    this.byKey = true;
    if (place < 0) return;
    const { min, max } = this.plot.scales.x;
    if (points[place].x < min || points[place].x > max) {
      const half = (max - min) / 2;
      this.plot.setScale("x", { min: points[place].x - half, max: points[place].x + half });
    }
    this.choose(place, true);
  };

  Chart.prototype.zoom = function (factor) {
    const { points } = this.spec;
    const { min, max } = this.plot.scales.x;
    const centre = this.chosen >= 0 ? points[this.chosen].x : (min + max) / 2;
    const half = ((max - min) / 2) * factor;
    const [first, last] = [points[0].x, points.at(-1).x];
    const whole = half * 2 >= last - first;
    this.plot.setScale("x", whole ? { min: first, max: last } : { min: centre - half, max: centre + half });
    this.choose(this.chosen);
  };

  Chart.prototype.open = function () {
    const where = this.chosen >= 0 && this.spec.href ? this.spec.href(this.spec.points[this.chosen]) : "";
    if (where) window.location.assign(where);
  };

  Chart.prototype.setLog = function (log) {
    this.log = log;
    this.choose(-1);
    this.build();
  };

  /* Draw a chart when it is about to be seen; `make` returns it. Before a page is printed all are drawn. */
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) start(entry.target);
    if (charts.size && !performance.getEntriesByName("epwatch:drawn").length) performance.measure("epwatch:drawn", { start: 0 });
  }, { rootMargin: "400px" });

  function start(figure) {
    const make = waiting.get(figure);
    waiting.delete(figure);
    seen.unobserve(figure);
    if (make) make(figure);
  }

  function whenSeen(figure, make) {
    waiting.set(figure, make);
    seen.observe(figure);
  }

  window.addEventListener("beforeprint", () => [...waiting.keys()].forEach(start));
  dark.addEventListener("change", () => {
    palette = {};
    charts.forEach((chart) => chart.plot.redraw(false, true));
  });

  Object.assign(epwatch, { Chart, whenSeen, tell, element, colour, significant, withUnit, percent, moment });
})(window.epwatch);
