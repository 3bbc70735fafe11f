/* The charts of each view, from the JSON that stands in the page: series through time, and the samples of a run.
   `chart.js` draws them. */
"use strict";
(function (epwatch) {
  const { Chart, whenSeen, significant, withUnit, percent, moment } = epwatch;
  const LINES = 6;
  const SIGNS = JSON.parse(document.body.dataset.signs);
  const lineColour = (place) => "plot-" + ((place % LINES) + 1);

  const inFile = new Map([...document.querySelectorAll('section.view[data-kind="run"]')].map((one) => [one.dataset.name, one.id]));

  /* A link to a run from where the page is; in a report to its anchor, "" where the file does not have it. */
  function toRun(runId) {
    const pattern = document.body.dataset.run;
    if (pattern) return pattern.replace("RUN", encodeURIComponent(runId));
    return inFile.has(runId) ? "#" + inFile.get(runId) : "";
  }

  /* Points of all lines in one list, in the order of x. By commit, x is the commit's place in the order of first runs. */
  function seriesPoints(view) {
    const points = [];
    const places = new Map();
    if (view.by === "commit") {
      const first = new Map();
      for (const { points: of } of view.lines) {
        of.commit.forEach((commit, place) => first.set(commit, Math.min(first.get(commit) ?? Infinity, of.at[place])));
      }
      [...first].sort(([, one], [, other]) => one - other).forEach(([commit], place) => places.set(commit, place));
    }
    view.lines.forEach((line, s) => {
      const of = line.points;
      of.at.forEach((at, place) => {
        const x = view.by === "commit" ? places.get(of.commit[place]) : at;
        points.push({ x, y: of.value[place], low: of.low[place], high: of.high[place], s, at, place });
      });
    });
    points.sort((one, other) => one.x - other.x || one.s - other.s || one.at - other.at);
    return [points, [...places.keys()]];
  }

  function seriesLines(view, point) {
    const line = view.lines[point.s];
    const of = line.points;
    const [place, unit] = [point.place, view.unit];
    const several = of.runs[place] > 1;
    const lines = [`${view.lines.length > 1 ? line.label + ": " : ""}${withUnit(point.y, unit)}`, moment(point.at)];
    if (point.low !== point.high) {
      lines.push(`${withUnit(point.low, unit)} to ${withUnit(point.high, unit)}${several ? ` over ${of.runs[place]} runs` : " over ranks"}`);
    } else if (several) lines.push(`${of.runs[place]} runs`);
    if (of.verdict[place]) {
      const effect = of.effect[place] === null ? "" : `, ${percent(of.effect[place])} against its baseline`;
      lines.push(`${SIGNS[of.verdict[place]]} ${of.verdict[place]}${effect}`);
    }
    if (line.band) lines.push(`${percent(point.y / line.band.value - 1)} against ${line.band.words}, ${withUnit(line.band.value, unit)}`);
    if (of.night[place]) lines.push(`night ${of.night[place]}`);
    lines.push(`commit ${of.commit[place] ? of.commit[place].slice(0, 12) : "not known"}, environment ${of.environment[place]}`);
    lines.push(`run ${of.run_id[place].slice(0, 12)}`);
    return lines;
  }

  function fill(pen, colour, alpha, path) {
    pen.ctx.globalAlpha = alpha;
    pen.ctx.fillStyle = pen.colour(colour);
    pen.ctx.fill(path);
    pen.ctx.globalAlpha = 1;
  }

  function stroke(pen, colour, width, path, dash = []) {
    pen.ctx.strokeStyle = pen.colour(colour);
    pen.ctx.lineWidth = width * pen.ratio;
    pen.ctx.setLineDash(dash.map((one) => one * pen.ratio));
    pen.ctx.stroke(path);
    pen.ctx.setLineDash([]);
  }

  function vertical(pen, x) {
    const path = new Path2D();
    path.moveTo(pen.x(x), pen.top);
    path.lineTo(pen.x(x), pen.top + pen.height);
    return path;
  }

  function level(pen, from, to, y) {
    const path = new Path2D();
    path.moveTo(pen.x(from), pen.y(y));
    path.lineTo(pen.x(to), pen.y(y));
    return path;
  }

  /* A verdict's shape, so that no reader depends on colour. */
  function shape(path, kind, x, y, size) {
    if (kind === "regressed" || kind === "improved") {
      const up = kind === "regressed" ? -1 : 1;
      path.moveTo(x, y + up * size * 1.3);
      path.lineTo(x + size * 1.2, y - up * size * 0.8);
      path.lineTo(x - size * 1.2, y - up * size * 0.8);
      path.closePath();
    } else {
      path.moveTo(x + size, y);
      path.arc(x, y, size, 0, 2 * Math.PI);
    }
  }

  function text(pen, words, x, y, colour, align) {
    pen.ctx.font = `${11.5 * pen.ratio}px ${getComputedStyle(document.body).fontFamily}`;
    pen.ctx.fillStyle = pen.colour(colour);
    pen.ctx.textAlign = align;
    pen.ctx.fillText(words, x, y);
  }

  function series(section, view, figure) {
    const [points, commits] = seriesPoints(view);
    const byLine = view.lines.map((line, s) => points.filter((point) => point.s === s && point.y !== null));
    /* Where a moment lies on the axis: itself, or, by commit, before the first point of the line that is not older. */
    const on = (s, at) => {
      if (view.by !== "commit") return at;
      const next = byLine[s].find((point) => point.at >= at);
      return next ? next.x - 0.5 : (byLine[s].at(-1) ?? { x: 0 }).x + 0.5;
    };
    /* Of several metrics of one series, one line has the baseline and the change points, which are the same for all. */
    const leads = new Map();
    view.lines.forEach((line, s) => { if (!leads.has(line.asked) || line.metric === "latency_us") leads.set(line.asked, s); });
    const leading = new Set(leads.values());
    const changes = view.lines.flatMap((line, s) => (leading.has(s) ? line.changes : []).map((change) => ({ ...change, s, x: on(s, change.at) })));
    const marks = [
      ...view.marks.map((mark) => ({ x: on(mark.line, mark.at), edge: "bottom", kind: "◆", lines: ["Environment changed, " + moment(mark.at), mark.words] })),
      ...view.notes.map((note) => {
        const at = Date.parse(note.at) / 1000;
        return { x: on(0, at), edge: "top", kind: "⚑", lines: [`Note of ${note.who}, ${moment(at)}`, note.text] };
      }),
      ...changes.map((change) => ({ x: change.x, edge: "top", kind: "", lines: ["Change point, " + moment(change.at), change.sentence] })),
    ];

    function under(pen) {
      view.lines.forEach((line, s) => {
        const { band } = line;
        if (band && leading.has(s)) {
          const path = new Path2D();
          const [colour, alpha] = leading.size > 1 ? [lineColour(s), 0.1] : ["edge", 0.22];
          path.rect(pen.left, pen.y(band.high), pen.width, pen.y(band.low) - pen.y(band.high));
          fill(pen, colour, alpha, path);
          stroke(pen, colour, 1, level(pen, pen.from, pen.to, band.value), [6, 4]);
        }
        const around = byLine[s].filter((point) => point.low !== point.high && point.x >= pen.from && point.x <= pen.to);
        if (!around.length) return;
        const path = new Path2D();
        if (around.length * 5 * pen.ratio < pen.width) {
          for (const point of around) {
            path.moveTo(pen.x(point.x), pen.y(point.low));
            path.lineTo(pen.x(point.x), pen.y(point.high));
          }
          pen.ctx.globalAlpha = 0.55;
          stroke(pen, lineColour(s), 1.5, path);
          pen.ctx.globalAlpha = 1;
        } else {
          around.forEach((point, place) => path[place ? "lineTo" : "moveTo"](pen.x(point.x), pen.y(point.high)));
          around.reverse().forEach((point) => path.lineTo(pen.x(point.x), pen.y(point.low)));
          fill(pen, lineColour(s), 0.2, path);
        }
      });
    }

    function over(pen) {
      for (const change of changes) {
        const ofLine = byLine[change.s];
        const [before, after] = [changes.filter((one) => one.s === change.s && one.at < change.at).at(-1), changes.find((one) => one.s === change.s && one.at > change.at)];
        const path = new Path2D();
        const [early, late] = [on(change.s, change.earliest_at), on(change.s, change.latest_at)];
        path.rect(pen.x(early), pen.top, Math.max(pen.x(late) - pen.x(early), 0), pen.height);
        fill(pen, "edge", 0.18, path);
        stroke(pen, "ink", 1, vertical(pen, change.x), [2, 3]);
        const from = before ? before.x : (ofLine[0] ?? change).x;
        const to = after ? after.x : (ofLine.at(-1) ?? change).x;
        if (change.before !== null) stroke(pen, "ink", 1.5, level(pen, from, change.x, change.before));
        if (change.after !== null) stroke(pen, "ink", 1.5, level(pen, change.x, to, change.after));
        const left = pen.x(change.x) > pen.left + pen.width * 0.85;
        text(pen, percent(change.effect), pen.x(change.x) + (left ? -5 : 5) * pen.ratio, pen.top + 14 * pen.ratio, "ink", left ? "right" : "left");
      }
      const visible = points.filter((point) => point.y !== null && point.x >= pen.from && point.x <= pen.to);
      const size = Math.max(1.3, Math.min(3.4, pen.width / pen.ratio / Math.max(visible.length / view.lines.length, 1) / 2)) * pen.ratio;
      const shapes = new Map();
      for (const point of visible) {
        const verdict = view.lines[point.s].points.verdict[point.place];
        const kind = ["regressed", "improved", "inconclusive"].includes(verdict) ? verdict : "";
        const name = kind === "" ? lineColour(point.s) : kind;
        if (!shapes.has(name)) shapes.set(name, new Path2D());
        shape(shapes.get(name), kind, pen.x(point.x), pen.y(point.y), kind ? Math.max(size, 2.6 * pen.ratio) : size);
      }
      const colours = { regressed: "bad-edge", improved: "good-edge" };
      for (const [name, path] of shapes) {
        fill(pen, name === "inconclusive" ? "page" : colours[name] ?? name, 1, path);
        if (name === "inconclusive") stroke(pen, "open", 1.4, path);
        else if (name in colours) stroke(pen, "page", 0.6, path);
      }
      for (const mark of marks) {
        if (mark.kind) text(pen, mark.kind, pen.x(mark.x), mark.edge === "top" ? pen.top + 12 * pen.ratio : pen.top + pen.height - 4 * pen.ratio, mark.kind === "⚑" ? "open" : "soft", "center");
      }
    }

    const byCommit = view.by === "commit";
    const chart = new Chart(figure, {
      points, under, over, marks, log: view.log, time: !byCommit, height: window.innerWidth < 700 ? 300 : 420,
      series: view.lines.map((line, s) => ({ label: line.label, colour: lineColour(s), line: true })),
      xLabel: byCommit ? "commit, in the order of first runs" : "start of the run, UTC",
      xValues: byCommit ? (place) => (commits[place] === undefined ? "" : commits[place].slice(0, 8) || "?") : null,
      yLabel: view.unit ? `${view.words}, ${view.unit}` : view.words,
      say: (point) => seriesLines(view, point),
      href: (point) => toRun(view.lines[point.s].points.run_id[point.place]),
    });
    const log = section.querySelector('form [name="log"]');
    if (log) {
      log.addEventListener("change", (event) => {
        event.stopPropagation();
        chart.setLog(log.checked);
        const address = new URL(window.location.href);
        if (log.checked) address.searchParams.set("log", "1");
        else address.searchParams.delete("log");
        window.history.replaceState(null, "", address);
      });
    }
  }

  /* The points as a table, made when it is opened: ten years of nights would burden the page of who never looks. */
  function table(details, view) {
    const names = ["started, UTC", view.words + (view.unit ? ", " + view.unit : ""), "lowest", "highest", "runs", "verdict", "night", "commit", "run"];
    const box = epwatch.element("div", "scroll", details);
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "points");
    for (const line of view.lines) {
      const made = epwatch.element("table", "wide", box);
      made.createCaption().textContent = `${line.phase} of ${line.case}${line.label ? ", " + line.label : ""}`;
      const head = made.createTHead().insertRow();
      names.forEach((name, place) => {
        const cell = epwatch.element("th", place >= 1 && place <= 4 ? "n" : "", head);
        cell.scope = "col";
        cell.textContent = name;
      });
      const body = made.createTBody();
      const of = line.points;
      for (let place = of.at.length - 1; place >= 0; place -= 1) {
        const row = body.insertRow();
        const cells = [
          moment(of.at[place]).slice(0, 16), significant(of.value[place]), significant(of.low[place]), significant(of.high[place]), of.runs[place],
          of.verdict[place] ? `${SIGNS[of.verdict[place]]} ${of.verdict[place]}` : "", of.night[place], of.commit[place].slice(0, 12), of.run_id[place].slice(0, 12),
        ];
        cells.forEach((value, column) => {
          const cell = row.insertCell();
          if (column >= 1 && column <= 4) cell.className = "n";
          const where = column === 8 ? toRun(of.run_id[place]) : "";
          if (where) {
            const link = document.createElement("a");
            link.href = where;
            link.textContent = value;
            cell.append(link);
          } else cell.textContent = value;
        });
      }
    }
  }

  const median = (values) => {
    const sorted = [...values].sort((one, other) => one - other);
    const half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  };

  /* Every sample by rank, spread a little so that equal ones stay apart. */
  function byRank(view, phase, figure) {
    const points = [];
    phase.samples_us.forEach((samples, rank) => {
      samples.forEach((y, iteration) => {
        const s = iteration < phase.leading_dropped ? 2 : rank === phase.slowest_rank && phase.samples_us.length > 1 ? 1 : 0;
        points.push({ x: rank + (((iteration * 7) % 11) - 5) * 0.055, y, s, rank, iteration, outside: s === 2 });
      });
    });
    points.sort((one, other) => one.x - other.x);
    const host = new Map(view.ranks.map((place) => [place.rank, place.host]));
    new Chart(figure, {
      points, height: 270, xEdges: [-0.6, phase.samples_us.length - 0.4],
      series: [{ label: "ranks", colour: "plot-1" }, { label: "slowest rank", colour: "plot-2" }, { label: "left out", colour: "plot-6" }],
      xLabel: "rank", xSpace: 26, yLabel: "latency, µs", xValues: (rank) => (Number.isInteger(rank) && rank >= 0 && rank < phase.samples_us.length ? String(rank) : ""),
      over: (pen) => {
        dots(pen, points, ["plot-1", "plot-2", "plot-6"]);
        const path = new Path2D();
        phase.rank_p50_us.forEach((value, rank) => {
          path.moveTo(pen.x(rank - 0.38), pen.y(value));
          path.lineTo(pen.x(rank + 0.38), pen.y(value));
        });
        stroke(pen, "ink", 2, path);
      },
      say: (point) => [
        withUnit(point.y, "µs"), `rank ${point.rank}${host.has(point.rank) ? " on " + host.get(point.rank) : ""}, median ${withUnit(phase.rank_p50_us[point.rank], "µs")}`,
        `iteration ${point.iteration}${point.s === 2 ? ", left out of the statistics" : ""}`,
      ],
    });
  }

  function dots(pen, points, colours) {
    const size = Math.max(1.4, Math.min(3, (pen.width / pen.ratio / points.length) * 4)) * pen.ratio;
    const paths = colours.map(() => new Path2D());
    for (const point of points) {
      if (point.x < pen.from || point.x > pen.to) continue;
      const beyond = point.y > pen.high;
      shape(paths[point.s], beyond ? "regressed" : "", pen.x(point.x), beyond ? pen.top + 6 * pen.ratio : pen.y(point.y), beyond ? size * 1.2 : size);
    }
    paths.forEach((path, s) => fill(pen, colours[s], 0.75, path));
  }

  const iterations = (phase) => phase.samples_us[0].map((_, place) => phase.samples_us.map((samples) => samples[place]));

  function byIteration(view, phase, figure) {
    const points = iterations(phase).flatMap((samples, x) => {
      const slowest = Math.max(...samples);
      const outside = x < phase.leading_dropped;
      const half = { x, y: median(samples), s: 1, outside, what: "median over ranks" };
      const most = { x, y: slowest, s: 0, outside, what: `slowest: rank ${samples.indexOf(slowest)}` };
      return samples.length > 1 ? [most, half] : [most];
    });
    new Chart(figure, {
      points, height: 270, xLabel: "iteration", yLabel: "latency, µs", xValues: (one) => (Number.isInteger(one) && one >= 0 ? String(one) : ""),
      series: [{ label: "slowest rank", colour: "plot-2", line: true }, { label: "median over ranks", colour: "plot-1", line: true }],
      under: (pen) => {
        if (!phase.leading_dropped) return;
        const path = new Path2D();
        path.rect(pen.left, pen.top, pen.x(phase.leading_dropped - 0.5) - pen.left, pen.height);
        fill(pen, "edge", 0.22, path);
      },
      over: (pen) => dots(pen, points, ["plot-2", "plot-1"]),
      say: (point) => [withUnit(point.y, "µs"), `iteration ${point.x}, ${point.what}`, point.x < phase.leading_dropped ? "left out of the statistics" : ""],
    });
  }

  function histogram(view, phase, figure) {
    const values = iterations(phase).slice(phase.leading_dropped).map((samples) => Math.max(...samples));
    if (!values.length) return;
    const sorted = [...values].sort((one, other) => one - other);
    const [low, high] = [sorted[0], sorted.at(-1)];
    const spread = sorted[Math.floor(sorted.length * 0.75)] - sorted[Math.floor(sorted.length * 0.25)];
    const wanted = spread > 0 ? Math.ceil((high - low) / ((2 * spread) / Math.cbrt(values.length))) : 12;
    const count = high > low ? Math.max(8, Math.min(48, wanted)) : 1;
    const width = high > low ? (high - low) / count : Math.max(high * 0.02, 1);
    const counts = new Array(count).fill(0);
    for (const value of values) counts[Math.min(count - 1, Math.floor((value - low) / width))] += 1;
    const points = counts.map((y, bin) => ({ x: low + (bin + 0.5) * width, y, low: 0, s: 0, bin }));
    new Chart(figure, {
      points, height: 270, xEdges: [low - width, low + (count + 1) * width], xLabel: "slowest rank of an iteration, µs", yLabel: "iterations",
      series: [{ label: "iterations", colour: "plot-1" }], yEdges: [0], yWhole: true,
      over: (pen) => {
        const path = new Path2D();
        for (const point of points) {
          if (point.y) path.rect(pen.x(point.x - width * 0.47), pen.y(point.y), pen.x(point.x + width * 0.47) - pen.x(point.x - width * 0.47), pen.y(0) - pen.y(point.y));
        }
        fill(pen, "plot-1", 0.8, path);
        stroke(pen, "ink", 1.5, vertical(pen, median(values)), [5, 3]);
      },
      say: (point) => [
        `${point.y} of ${values.length} iterations`, `${withUnit(low + point.bin * width, "µs")} to ${withUnit(low + (point.bin + 1) * width, "µs")}`,
        `dashed: their median, ${withUnit(median(values), "µs")}: the run value`,
      ],
    });
  }

  const ofSamples = { ranks: byRank, iterations: byIteration, histogram };

  for (const section of document.querySelectorAll("section.view")) {
    const held = section.querySelector("script.data");
    if (!held) continue;
    let view = null;
    const read = () => (view ??= JSON.parse(held.textContent));
    for (const figure of section.querySelectorAll("figure.plot")) {
      whenSeen(figure, () => {
        const kind = figure.dataset.plot;
        if (kind === "series") series(section, read(), figure);
        else ofSamples[kind](read(), read().phases[Number(figure.dataset.phase)], figure);
      });
    }
    const points = section.querySelector("details.points-table");
    if (points) points.addEventListener("toggle", () => { if (points.childElementCount === 1) table(points, read()); });
  }
})(window.epwatch);
