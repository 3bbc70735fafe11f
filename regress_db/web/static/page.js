/* What every page does beside its charts: hover boxes, filters that stand in the address, tables sorted by a column.
   Every page can be read without it. */
"use strict";
(function (epwatch) {
  /* Hover boxes: what `data-tip` says, shown to the pointer and to the keyboard alike; Escape takes it away. */
  const tip = epwatch.element("div", "tip", document.body);
  tip.id = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  let told = null;

  function hide() {
    if (told) told.removeAttribute("aria-describedby");
    told = null;
    tip.hidden = true;
  }

  function show(target) {
    if (target === told) return;
    hide();
    told = target;
    target.setAttribute("aria-describedby", "tip");
    epwatch.tell(tip, target.dataset.tip.split("\n"));
    tip.hidden = false;
    const at = target.getBoundingClientRect();
    const below = at.bottom + 6 + tip.offsetHeight <= window.innerHeight || at.top < tip.offsetHeight + 6;
    const left = Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = Math.max(8, left) + window.scrollX + "px";
    tip.style.top = (below ? at.bottom + 6 : at.top - 6 - tip.offsetHeight) + window.scrollY + "px";
  }

  const tipOf = (event) => event.target instanceof Element && event.target.closest("[data-tip]");
  for (const kind of ["pointerover", "focusin"]) {
    document.addEventListener(kind, (event) => {
      const target = tipOf(event);
      if (target) show(target);
      else hide();
    });
  }
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  /* Filters: a form whose fields narrow the rows of a table; what is chosen stands in the address and comes from it. */
  function filters(form) {
    const rows = [...document.querySelectorAll(form.dataset.rows)];
    const fields = [...form.elements].filter((field) => field.name);
    const said = form.querySelector(".say");
    const nothing = document.querySelector(form.dataset.nothing);

    function wanted() {
      return fields.map((field) => [field, field.value.trim()]).filter(([, value]) => value);
    }

    /* A value is of the field's own name, or `name=value`, as the server takes it of a case. */
    function fits(row, field, value) {
      const [, name, wantedValue] = field.name === "case" ? value.match(/^([a-z]+)=(.*)$/s) : [null, field.name, value];
      const has = row.dataset[name] ?? "";
      if (field.type === "search") return value.toLowerCase().split(/\s+/).every((word) => has.toLowerCase().includes(word));
      return has === wantedValue || has.split(" ").includes(wantedValue);
    }

    function apply(keep) {
      const asked = wanted();
      let shown = 0;
      for (const row of rows) {
        row.hidden = !asked.every(([field, value]) => fits(row, field, value));
        shown += row.hidden ? 0 : 1;
      }
      said.textContent = `${shown} of ${rows.length} shown`;
      if (nothing) nothing.hidden = shown > 0;
      if (!keep) return;
      const address = new URL(window.location.href);
      for (const field of fields) address.searchParams.delete(field.name);
      for (const [field, value] of asked) address.searchParams.append(field.name, value);
      try {
        window.history.replaceState(null, "", address);
      } catch {
        // A file opened in a browser that keeps addresses of files as they are: the filter works all the same.
      }
    }

    function read() {
      const { searchParams } = new URL(window.location.href);
      for (const field of fields) {
        const values = searchParams.getAll(field.name);
        if (field.options) field.value = [...field.options].map((one) => one.value).find((one) => one && values.includes(one)) ?? "";
        else field.value = values[0] ?? "";
      }
      apply(false);
    }

    form.addEventListener("input", () => apply(true));
    form.addEventListener("submit", (event) => { event.preventDefault(); apply(true); });
    form.addEventListener("reset", () => window.setTimeout(() => {
      for (const field of fields) field.value = "";
      apply(true);
    }));
    window.addEventListener("popstate", read);
    form.hidden = false;
    read();
  }

  /* Tables that a click on a heading sorts: by `data-v` of the cells where they have it, else by their text. */
  function sortable(table) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      if (!heading.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const down = heading.getAttribute("aria-sort") === "descending" ? 1 : -1;
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
        const value = (row) => {
          const cell = row.cells[column];
          const text = cell.dataset.v ?? cell.textContent.trim();
          return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
        };
        const rows = [...body.rows].map((row) => [value(row), row]);
        rows.sort(([one], [other]) => {
          if (one === "" || other === "") return one === other ? 0 : one === "" ? 1 : -1;
          if (typeof one === typeof other) return (one < other ? -1 : one > other ? 1 : 0) * down;
          return typeof one === "number" ? -1 : 1;
        });
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  /* Forms that ask the server again as soon as a choice changes; empty fields stay out of the address. */
  function submits(form) {
    form.addEventListener("submit", () => {
      for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
    });
    form.addEventListener("change", (event) => { if (event.target.matches("select")) form.requestSubmit(); });
    window.addEventListener("pageshow", () => { for (const field of form.elements) field.disabled = false; });
  }

  document.querySelectorAll("form[data-rows]").forEach(filters);
  document.querySelectorAll("form[data-submits]").forEach(submits);
  document.querySelectorAll("table[data-sortable]").forEach(sortable);
})(window.epwatch);
