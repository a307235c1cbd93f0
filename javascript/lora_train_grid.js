// The viewer of an epoch × weight grid. The server puts the grid's document into a hidden block (ui/grid_view.py); this
// looks there for a new revision and shows it. What the person does with a cell goes back through a hidden text box.
// Texts come translated with the document; everything is inserted as text, never as markup.
(() => {
    if (window.loraTrainGrid) return;
    window.loraTrainGrid = true;

    const AXES = ["column", "weight", "prompt", "seed"];
    const TABS = 6; // so many values of an axis are shown as buttons, more as a list
    const FLICKER = 500; // ms; slower than what can harm people
    const PATIENCE = 60000; // ms until a wish counts as lost
    const AGAIN = 1500; // ms until it is sent once more
    const BESIDE = 40; // ms that gradio is given to take over what is put into a text box
    const PRESS = 1500; // ms that a press lasts at most

    const root = () => (typeof gradioApp === "function" ? gradioApp() : document);

    const make = (tag, props = {}, ...children) => {
        const made = document.createElement(tag);
        for (const [key, value] of Object.entries(props)) {
            if (key === "style") for (const [name, each] of Object.entries(value)) made.style.setProperty(name, each);
            else if (key === "data") Object.assign(made.dataset, value);
            else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
            else if (key in made) made[key] = value;
            else made.setAttribute(key, value);
        }
        put(made, ...children);
        return made;
    };

    /** Give an element other children; those that are null are left out. */
    const put = (element, ...children) => element.replaceChildren(...children.filter((child) => child !== null));

    const answered = () => root().querySelector("#lora_train_grid_feedback .lt-answer");
    const numberOf = (answer) => (answer ? answer.dataset.number : "");

    let line = Promise.resolve();
    let wishes = 0;

    /** Put a wish into the hidden text box and press the hidden button. */
    const send = (button, wish) => {
        const field = root().querySelector("#lora_train_grid_wish :is(textarea, input)");
        field.value = JSON.stringify(wish);
        field.dispatchEvent(new Event("input", { bubbles: true }));
        setTimeout(() => root().querySelector(button).click(), BESIDE);
    };

    /**
     * Ask the server for something; whether it answered. One wish after the other: gradio drops a click while it waits
     * for an answer, and on a busy machine it may take a click before the text. So a wish is numbered and sent until
     * its own answer comes; the server grants it once (ui/validate.py).
     */
    const ask = (button, wish) => {
        const number = `${Date.now()}-${(wishes += 1)}-${Math.random().toString(36).slice(2)}`;
        const grant = async () => {
            const until = Date.now() + PATIENCE;
            let sent = 0;
            let before = "";
            while (Date.now() < until) {
                const found = numberOf(answered());
                if (found === number) return true;
                if (found !== before || Date.now() - sent > AGAIN) {
                    before = found;
                    sent = Date.now();
                    send(button, { ...wish, number });
                }
                await new Promise((done) => setTimeout(done, BESIDE));
            }
            return false;
        };
        line = line.then(grant);
        return line;
    };

    class Viewer {
        constructor(element) {
            this.element = element;
            this.structure = "";
            this.rows = "weight";
            this.columns = "column";
            this.sort = "loss";
            this.width = 64;
            this.mode = "side";
            this.wipe = 50;
            this.cast = new Map();
        }

        // ---------------------------------------------------------- the document
        show(view) {
            const structure = JSON.stringify([
                view.run,
                view.columns,
                view.weights,
                view.prompts,
                view.seeds,
                view.size,
                view.texts,
            ]);
            const isOther = this.run !== view.run;
            this.run = view.run;
            this.view = view;
            for (const [key, vote] of this.cast) view.votes[key] = vote; // the server may not know of it yet
            this.index();
            if (structure === this.structure) return this.refresh();
            this.structure = structure;
            this.signs = {};
            if (isOther) Object.assign(this, { rows: "weight", columns: "column" });
            if (isOther || !this.exists(this.place)) Object.assign(this, { place: this.first(), touched: false });
            this.pins = isOther || !this.pins ? {} : this.pins;
            for (const pin of Object.keys(this.pins)) if (!this.exists(this.pins[pin])) delete this.pins[pin];
            this.build();
        }

        clear() {
            this.stopFlicker();
            this.structure = this.run = "";
            this.element.replaceChildren();
        }

        index() {
            const view = this.view;
            this.cells = new Map();
            for (const [column, weight, prompt, seed, key, drawn, numbers] of view.cells) {
                this.cells.set(`${column}/${weight}/${prompt}/${seed}`, { key, drawn, numbers });
            }
            this.groups = new Map(view.groups.map((group) => [`${group.column}/${group.weight}`, group]));
            this.measured = view.numbers.filter(({ key }) => view.groups.some((group) => key in group.numbers));
            const losses = view.groups.map((group) => group.numbers.loss).filter((loss) => loss !== undefined);
            this.losses = losses.length ? [Math.min(...losses), Math.max(...losses)] : null;
        }

        values(axis) {
            return this.view[`${axis}s`];
        }

        exists(place) {
            return Boolean(place) && AXES.every((axis) => place[axis] < this.values(axis).length);
        }

        /** The recommended cell, or else the last file at about the usual weight. */
        first() {
            const { best, weights, columns } = this.view;
            const weight = best.weight === undefined ? 0.8 : best.weight;
            const away = weights.map(({ value }) => Math.abs(value - weight));
            return {
                column: best.column === undefined ? columns.length - 1 : best.column,
                weight: away.indexOf(Math.min(...away)),
                prompt: 0,
                seed: 0,
            };
        }

        /** The checkpoint alone has one cell for all weights. */
        weightOf(place) {
            return this.view.columns[place.column].file ? place.weight : -1;
        }

        cell(place) {
            return this.cells.get(`${place.column}/${this.weightOf(place)}/${place.prompt}/${place.seed}`) || null;
        }

        group(place) {
            return this.groups.get(`${place.column}/${this.weightOf(place)}`) || { numbers: {}, tag: "" };
        }

        url(cell) {
            return `${this.view.pictures}${encodeURIComponent(cell.key)}.png`;
        }

        isBest(place) {
            const { best, weights } = this.view;
            return (
                place.column === best.column && this.weightOf(place) >= 0 && weights[place.weight].value === best.weight
            );
        }

        text(name, values = {}) {
            const text = this.view.texts[name];
            return Object.entries(values).reduce((all, [key, value]) => all.replace(`{${key}}`, value), text);
        }

        label(axis, place) {
            const value = this.values(axis)[place];
            if (axis === "weight") return this.text("weightValue", { weight: value.label });
            if (axis === "seed") return this.text("seedValue", { seed: value });
            if (axis === "prompt") return value.text + (value.trigger ? "" : ` (${this.text("noTrigger")})`);
            return value.label;
        }

        name(place) {
            const parts = [this.label("column", place.column)];
            if (this.weightOf(place) >= 0) parts.push(this.label("weight", place.weight));
            if (this.view.seeds.length > 1) parts.push(this.label("seed", place.seed));
            return parts.join(" · ");
        }

        // ---------------------------------------------------------- the parts of the page
        build() {
            this.bar = make("div", { className: "lt-v-bar" });
            this.table = make("table", { className: "lt-v-table", role: "grid" });
            this.table.addEventListener("click", (event) => this.clicked(event));
            this.table.addEventListener("keydown", (event) => this.pressed(event));
            this.detail = make("div", { className: "lt-v-detail" });
            this.said = make("div", { role: "status", className: "lt-v-said" }); // what was answered to a button
            this.comparison = make("div", { className: "lt-v-compare" });
            this.ranking = make("details", { className: "lt-v-ranking", open: true });
            this.element.replaceChildren(
                this.bar,
                make("small", { className: "lt-v-keys" }, this.text("keys")),
                make(
                    "div",
                    { className: "lt-v-main" },
                    make("div", { className: "lt-v-scroll" }, this.table),
                    this.detail,
                ),
                this.comparison,
                this.ranking,
            );
            this.buildBar();
            this.buildTable();
            this.buildComparison();
            this.refresh();
        }

        /** Show what has changed within the same structure, and leave everything else alone. */
        refresh() {
            if (!this.touched && this.view.best.column !== undefined) this.select(this.first(), false);
            for (const element of this.shown.keys()) this.fill(element);
            this.showDetail();
            this.showRanking();
            for (const picture of this.comparison.querySelectorAll("img[data-pin]")) this.loadPin(picture);
            if (!this.touched) this.revealBest();
        }

        /** Scroll so that the recommended cell is seen whole, below the head that stays. */
        revealBest() {
            const best = this.table.querySelector(".lt-best");
            const box = this.table.parentElement;
            if (!best || !box.clientHeight) return;
            const top = best.offsetTop - this.table.tHead.offsetHeight;
            const bottom = best.offsetTop + best.offsetHeight + 4 - box.clientHeight;
            if (box.scrollTop < bottom || box.scrollTop > top) box.scrollTop = Math.min(top, Math.max(bottom, 0));
        }

        /** Whether a part has to be made anew: what it shows is another than the last time. */
        isStale(part, ...state) {
            const sign = JSON.stringify(state);
            if (this.signs[part] === sign) return false;
            this.signs[part] = sign;
            return true;
        }

        // ---------------------------------------------------------- axes
        buildBar() {
            const rest = AXES.filter((axis) => axis !== this.rows && axis !== this.columns);
            this.bar.replaceChildren(
                this.axisChoice("columns"),
                this.axisChoice("rows"),
                ...rest.filter((axis) => this.values(axis).length > 1).map((axis) => this.picker(axis)),
                this.sizeSlider(),
            );
        }

        axisChoice(side) {
            const other = side === "rows" ? "columns" : "rows";
            const change = (event) => {
                const axis = event.target.value;
                if (this[other] === axis) this[other] = this[side];
                this[side] = axis;
                this.buildBar();
                this.buildTable();
            };
            const options = AXES.map((axis) =>
                make("option", { value: axis, selected: this[side] === axis }, this.text(axis)),
            );
            const select = make("select", { onchange: change, data: { axis: side } }, ...options);
            return make("label", {}, make("span", {}, this.text(side)), select);
        }

        /** Chooses the value of an axis that is neither rows nor columns. */
        picker(axis) {
            const values = this.values(axis);
            const set = (value) => {
                this.touched = true;
                this.place = { ...this.place, [axis]: value };
                this.buildBar();
                this.buildTable();
                this.showDetail();
                this.bar.querySelector(`[data-picker="${axis}"] :is(select, [aria-pressed="true"])`).focus();
            };
            const labels = values.map((_, place) => this.label(axis, place));
            if (values.length <= TABS && axis !== "prompt") {
                const tabs = labels.map((label, place) =>
                    make(
                        "button",
                        {
                            type: "button",
                            className: "lt-tab",
                            "aria-pressed": String(place === this.place[axis]),
                            onclick: () => set(place),
                        },
                        label,
                    ),
                );
                return make(
                    "div",
                    { className: "lt-v-picker", data: { picker: axis } },
                    make("span", {}, this.text(axis)),
                    ...tabs,
                );
            }
            const options = labels.map((label, place) =>
                make("option", { value: place, selected: place === this.place[axis] }, label),
            );
            const step = (by) => set((this.place[axis] + by + values.length) % values.length);
            return make(
                "div",
                { className: "lt-v-picker", data: { picker: axis } },
                make("span", {}, this.text(axis)),
                make("button", { type: "button", className: "lt-tab", title: "−1", onclick: () => step(-1) }, "‹"),
                make("select", { onchange: (event) => set(Number(event.target.value)) }, ...options),
                make("button", { type: "button", className: "lt-tab", title: "+1", onclick: () => step(1) }, "›"),
            );
        }

        sizeSlider() {
            const slide = (event) => {
                this.width = Number(event.target.value);
                this.element.style.setProperty("--lt-cell", `${this.width}px`);
            };
            const slider = make("input", {
                type: "range",
                min: 48,
                max: 420,
                step: 4,
                value: this.width,
                oninput: slide,
            });
            return make("label", { className: "lt-v-size" }, make("span", {}, this.text("size")), slider);
        }

        // ---------------------------------------------------------- table
        buildTable() {
            const [rows, columns] = [this.values(this.rows), this.values(this.columns)];
            const [width, height] = this.view.size;
            const style = this.element.style;
            style.setProperty("--lt-columns", columns.length);
            style.setProperty("--lt-head", this.rows === "prompt" ? "150px" : "76px");
            style.setProperty("--lt-cell", `${this.width}px`);
            style.setProperty("--lt-shape", `${width} / ${height}`);
            this.shown = new Map();
            const heads = columns.map((_, place) => this.head("col", this.columns, place));
            this.elements = rows.map((_, row) => columns.map((__, column) => this.emptyCell(row, column)));
            const lines = this.elements.map((cells, row) => make("tr", {}, this.head("row", this.rows, row), ...cells));
            this.table.replaceChildren(
                make("thead", {}, make("tr", {}, make("td", { className: "lt-corner" }), ...heads)),
                make("tbody", {}, ...lines),
            );
            for (const element of this.shown.keys()) this.fill(element);
            this.mark();
        }

        head(scope, axis, place) {
            const label = this.label(axis, place);
            return make("th", { scope, title: label }, make("span", {}, label));
        }

        emptyCell(row, column) {
            const element = make("td", { className: "lt-cell", role: "gridcell", tabIndex: -1 });
            this.shown.set(element, { [this.rows]: row, [this.columns]: column });
            return element;
        }

        /** Place of a cell of the table: what the table does not say is as chosen. */
        placeOf(element) {
            return { ...this.place, ...this.shown.get(element) };
        }

        fill(element) {
            const place = this.placeOf(element);
            const cell = this.cell(place);
            const numbers = { ...this.group(place).numbers, ...(cell ? cell.numbers : {}) };
            const vote = cell ? this.view.votes[cell.key] || 0 : 0;
            const sign = JSON.stringify([cell, numbers, vote, this.isBest(place), this.losses]);
            if (element.ltSign === sign) return;
            element.ltSign = sign;
            element.classList.toggle("lt-best", this.isBest(place));
            put(element, this.thumbnail(place, cell, vote), this.caption(numbers), this.lossBar(place));
        }

        thumbnail(place, cell, vote) {
            const frame = make("div", { className: "lt-pic" });
            if (cell && cell.drawn) {
                frame.append(
                    make("img", { loading: "lazy", decoding: "async", alt: this.name(place), src: this.url(cell) }),
                );
            } else {
                frame.append(make("span", { className: "lt-missing" }, this.text("waiting")));
            }
            if (this.isBest(place)) frame.append(this.badge());
            if (vote) frame.append(make("i", { className: "lt-vote" }, this.thumb(vote)));
            return frame;
        }

        badge() {
            const name = this.text("recommended");
            return make("b", { className: "lt-badge lt-done", title: name }, "★ ", make("span", {}, name));
        }

        thumb(vote) {
            return make("i", { className: vote > 0 ? "lt-thumb" : "lt-thumb lt-down" });
        }

        caption(numbers) {
            const known = this.view.numbers.filter(
                ({ key }) => ["loss", "copy", "leak"].includes(key) && key in numbers,
            );
            const parts = known.map((number) =>
                make(
                    "span",
                    { title: number.tells },
                    `${number.name} `,
                    make("b", {}, this.digits(numbers[number.key], number)),
                ),
            );
            return make("div", { className: "lt-nums" }, ...parts);
        }

        digits(value, { digits }) {
            return value.toFixed(digits);
        }

        /** The longer and redder, the higher the loss is among all. */
        lossBar(place) {
            const { loss } = this.group(place).numbers;
            if (loss === undefined) return null;
            const [low, high] = this.losses;
            const share = high > low ? (loss - low) / (high - low) : 0;
            const style = { width: `${8 + 92 * share}%`, background: `hsl(${Math.round(130 * (1 - share))} 65% 45%)` };
            return make("div", { className: "lt-lossbar" }, make("i", { style }));
        }

        /** Mark the chosen cell. */
        mark(focus = false) {
            const chosen = this.elements[this.place[this.rows]][this.place[this.columns]];
            for (const element of new Set([this.marked, chosen].filter(Boolean))) {
                element.setAttribute("aria-selected", String(element === chosen));
                element.tabIndex = element === chosen ? 0 : -1;
            }
            this.marked = chosen;
            if (!focus) return;
            chosen.focus({ preventScroll: true });
            chosen.scrollIntoView({ block: "nearest", inline: "nearest" });
        }

        select(place, focus) {
            const isHere = AXES.every(
                (axis) => axis === this.rows || axis === this.columns || place[axis] === this.place[axis],
            );
            this.place = { ...place };
            if (isHere) this.mark(focus);
            else {
                this.buildBar();
                this.buildTable();
            }
            this.showDetail();
        }

        clicked(event) {
            const element = event.target.closest("td.lt-cell");
            if (!element) return;
            this.touched = true;
            this.select(this.placeOf(element), true);
        }

        pressed(event) {
            const moves = {
                ArrowUp: [this.rows, -1],
                ArrowDown: [this.rows, 1],
                ArrowLeft: [this.columns, -1],
                ArrowRight: [this.columns, 1],
            };
            if (!moves[event.key]) return;
            event.preventDefault();
            const [axis, by] = moves[event.key];
            const value = Math.min(Math.max(this.place[axis] + by, 0), this.values(axis).length - 1);
            this.touched = true;
            this.select({ ...this.place, [axis]: value }, true);
        }

        // ---------------------------------------------------------- the chosen cell
        showDetail() {
            const place = this.place;
            const cell = this.cell(place);
            const vote = cell ? this.view.votes[cell.key] || 0 : 0;
            const group = this.group(place);
            if (!this.isStale("detail", place, cell, vote, group, this.isBest(place))) return;
            const badge = this.isBest(place) ? this.badge() : null;
            put(
                this.detail,
                make("div", { className: "lt-head" }, make("b", {}, this.name(place)), badge),
                this.picture(place, cell),
                make("div", { className: "lt-v-prompt" }, this.label("prompt", place.prompt)),
                ...(group.tag ? [make("code", {}, group.tag)] : []),
                this.numberTable(cell, group),
                ...(cell ? [this.votes(cell, vote), this.actions(place, cell, group), this.pinButtons()] : []),
                this.said,
            );
            if (this.isStale("place", place)) this.said.replaceChildren();
        }

        picture(place, cell) {
            if (!cell || !cell.drawn)
                return make(
                    "div",
                    { className: "lt-pic lt-big" },
                    make("span", { className: "lt-missing" }, this.text("waiting")),
                );
            const image = make("img", { src: this.url(cell), alt: this.name(place) });
            return make(
                "a",
                { className: "lt-pic lt-big", href: this.url(cell), target: "_blank", title: this.text("open") },
                image,
            );
        }

        numberTable(cell, group) {
            const rows = this.view.numbers
                .filter(({ key }) => key in group.numbers || (cell && key in cell.numbers))
                .map((number) => {
                    const own = cell && number.key in cell.numbers ? this.digits(cell.numbers[number.key], number) : "";
                    return make(
                        "tr",
                        { title: number.tells },
                        make("th", { scope: "row" }, number.name),
                        make("td", {}, own),
                        make("td", {}, this.withSpread(group, number)),
                    );
                });
            if (!rows.length) return null;
            const head = make("tr", {}, make("td"), make("td"), make("td", {}, this.text("mean")));
            return make("table", { className: "lt-v-numbers" }, head, ...rows);
        }

        withSpread(group, number) {
            const { [number.key]: value, [number.spread]: spread } = group.numbers;
            if (value === undefined) return "–";
            return this.digits(value, number) + (spread === undefined ? "" : ` ± ${this.digits(spread, number)}`);
        }

        button(name, onclick, props = {}) {
            return make(
                "button",
                { type: "button", className: "lt-button", onclick, data: { act: name }, ...props },
                this.text(name),
            );
        }

        votes(cell, vote) {
            const button = (value, name) => {
                const cast = () => {
                    const next = vote === value ? 0 : value;
                    this.cast.set(cell.key, next);
                    this.act("vote", { value: next }).then(() => {
                        if (this.cast.get(cell.key) === next) this.cast.delete(cell.key);
                    });
                    this.view.votes[cell.key] = next;
                    this.refresh();
                };
                return make(
                    "button",
                    {
                        type: "button",
                        className: "lt-button",
                        title: this.text(name),
                        data: { act: name },
                        "aria-pressed": String(vote === value),
                        onclick: cast,
                    },
                    this.thumb(value),
                );
            };
            return make("div", { className: "lt-v-buttons" }, button(1, "voteUp"), button(-1, "voteDown"));
        }

        actions(place, cell, group) {
            const prompt = [this.view.prompts[place.prompt].text, group.tag].filter(Boolean).join(" ");
            const settings = `${this.view.settings}, Seed: ${this.view.seeds[place.seed]}`;
            const use = this.button(
                "use",
                () => this.say(root().querySelector("#txt2img_prompt") ? "used" : "copied"),
                {
                    className: "lt-button lt-primary lt-use",
                    data: { act: "use", prompt, negative: this.view.negative, settings, replace: "" },
                },
            );
            const off = { disabled: !group.tag };
            return make(
                "div",
                { className: "lt-v-buttons" },
                use,
                this.button("card", () => this.act("card"), off),
                this.button("preview", () => this.act("preview"), { disabled: !group.tag || !cell.drawn }),
                this.button("bake", () => this.act("bake"), off),
                this.button("continue", () => this.act("continue"), off),
            );
        }

        say(name, kind = "good") {
            this.said.replaceChildren(make("div", { className: `lt-notice lt-${kind}` }, this.text(name)));
        }

        /** Show what the server has answered beside the buttons. */
        answer(said) {
            if (this.said) this.said.replaceChildren(...said.cloneNode(true).childNodes);
        }

        act(action, more = {}) {
            const weight = this.weightOf(this.place) < 0 ? 0 : this.view.weights[this.place.weight].value;
            const { key } = this.cell(this.place);
            const wish = { action, run: this.view.run, key, column: this.place.column, weight, ...more };
            const button = action === "continue" ? "#lora_train_grid_continue" : "#lora_train_grid_act";
            return ask(button, wish).then((granted) => granted || this.say("lost", "error"));
        }

        // ---------------------------------------------------------- comparing two
        pinButtons() {
            const pin = (which) => () => {
                this.pins[which] = { ...this.place };
                this.buildComparison();
            };
            return make(
                "div",
                { className: "lt-v-buttons" },
                this.button("pinA", pin("A")),
                this.button("pinB", pin("B")),
            );
        }

        stopFlicker() {
            clearInterval(this.flicker);
            this.flicker = null;
        }

        buildComparison() {
            this.stopFlicker();
            const { A, B } = this.pins;
            this.comparison.replaceChildren();
            if (!A && !B) return;
            const close = () => {
                this.pins = {};
                this.buildComparison();
            };
            const set = (mode) => () => {
                this.mode = mode;
                this.buildComparison();
            };
            const modes = ["side", "flicker", "wipe"].map((mode) =>
                this.button(mode, set(mode), { "aria-pressed": String(mode === this.mode), disabled: !(A && B) }),
            );
            this.comparison.append(
                make(
                    "div",
                    { className: "lt-v-buttons" },
                    make("b", {}, this.text("compare")),
                    ...modes,
                    this.button("close", close),
                ),
                A && B && this.mode !== "side"
                    ? this.stack()
                    : make(
                          "div",
                          { className: "lt-v-side" },
                          ...["A", "B"].filter((pin) => this.pins[pin]).map((pin) => this.pinned(pin)),
                      ),
            );
        }

        pinName(pin) {
            const place = this.pins[pin];
            const prompt = this.view.prompts.length > 1 ? ` · ${this.label("prompt", place.prompt)}` : "";
            return `${pin}: ${this.name(place)}${prompt}`;
        }

        pinned(pin) {
            return make("figure", {}, this.pinPicture(pin), make("figcaption", {}, this.pinName(pin)));
        }

        pinPicture(pin) {
            const picture = make("img", { alt: this.pinName(pin), data: { pin } });
            this.loadPin(picture);
            return picture;
        }

        loadPin(picture) {
            const cell = this.cell(this.pins[picture.dataset.pin]);
            const url = cell && cell.drawn ? this.url(cell) : "";
            if (url && picture.getAttribute("src") !== url) picture.src = url;
        }

        /** Both pictures in one place: one after the other, or divided by a line that is moved. */
        stack() {
            const stack = make("div", { className: "lt-v-stack" }, this.pinPicture("A"), this.pinPicture("B"));
            const caption = make("figcaption", {}, `${this.pinName("A")}  |  ${this.pinName("B")}`);
            const figure = make("figure", { className: "lt-v-one" }, stack, caption);
            figure.append(this.mode === "wipe" ? this.wiper(stack) : this.flickerer(stack, caption));
            return figure;
        }

        wiper(stack) {
            const move = (value) => {
                this.wipe = Number(value);
                stack.style.setProperty("--lt-wipe", `${value}%`);
            };
            stack.classList.add("lt-wiped");
            move(this.wipe);
            return make("input", {
                type: "range",
                min: 0,
                max: 100,
                value: this.wipe,
                "aria-label": this.text("wipe"),
                oninput: (event) => move(event.target.value),
            });
        }

        flickerer(stack, caption) {
            const flip = () => {
                const isA = stack.classList.toggle("lt-only-a");
                caption.textContent = this.pinName(isA ? "A" : "B");
            };
            const run = () => {
                this.flicker = setInterval(flip, FLICKER);
            };
            stack.classList.add("lt-flicker");
            flip();
            run();
            const toggle = (event) => {
                if (this.flicker) this.stopFlicker();
                else run();
                event.target.textContent = this.text(this.flicker ? "stop" : "go");
            };
            return this.button("stop", toggle);
        }

        // ---------------------------------------------------------- ranking
        showRanking() {
            const { votes } = this.view;
            if (!this.isStale("ranking", this.view.groups, votes, this.sort, this.view.best)) return;
            const sums = this.voteSums();
            const heads = [
                ...this.measured.map(({ key, name, tells }) => [key, name, tells]),
                ["votes", this.text("votes"), ""],
            ];
            const sortBy = (key) => () => {
                this.sort = key;
                this.showRanking();
            };
            const head = heads.map(([key, name, tells]) =>
                make(
                    "th",
                    { scope: "col", title: tells, "aria-sort": key === this.sort ? "ascending" : "none" },
                    make("button", { type: "button", onclick: sortBy(key), data: { sort: key } }, name),
                ),
            );
            const body = this.ranked(sums).map((group) => this.rank(group, sums));
            this.ranking.replaceChildren(
                make("summary", {}, this.text("ranking")),
                make(
                    "div",
                    { className: "lt-v-scroll" },
                    make(
                        "table",
                        { className: "lt-files" },
                        make("thead", {}, make("tr", {}, make("th"), ...head)),
                        make("tbody", {}, ...body),
                    ),
                ),
                this.legend(),
            );
        }

        /** What each number tells, for those who have no mouse to rest on its name. */
        legend() {
            if (!this.measured.length) return "";
            const entries = this.measured.map(({ name, tells }) => make("div", {}, make("b", {}, name), ` ${tells}`));
            return make("div", { className: "lt-v-legend" }, ...entries);
        }

        voteSums() {
            const sums = new Map();
            for (const [column, weight, , , key] of this.view.cells) {
                const name = `${column}/${weight}`;
                sums.set(name, (sums.get(name) || 0) + (this.view.votes[key] || 0));
            }
            return sums;
        }

        /** Groups of files and weights, the best first; those without the number last. */
        ranked(sums) {
            const number = this.view.numbers.find(({ key }) => key === this.sort);
            const value = (group) => {
                if (this.sort === "votes") return -(sums.get(`${group.column}/${group.weight}`) || 0);
                if (!(this.sort in group.numbers)) return Infinity;
                return number.better === "low" ? group.numbers[this.sort] : -group.numbers[this.sort];
            };
            const keyed = this.view.groups.map((group) => [value(group), group]);
            return keyed.sort(([a], [b]) => (a === b ? 0 : a - b)).map(([, group]) => group);
        }

        rank(group, sums) {
            const place = { column: group.column, weight: Math.max(group.weight, 0) };
            const choose = () => {
                this.touched = true;
                this.select({ ...this.place, ...place }, true);
            };
            const label = [this.label("column", group.column)];
            if (group.weight >= 0) label.push(this.label("weight", group.weight));
            const star = this.isBest(place) ? " ★" : "";
            const votes = sums.get(`${group.column}/${group.weight}`) || 0;
            return make(
                "tr",
                { className: star ? "lt-best" : "" },
                make(
                    "th",
                    { scope: "row" },
                    make("button", { type: "button", onclick: choose }, label.join(" · ") + star),
                ),
                ...this.measured.map((number) => make("td", {}, this.withSpread(group, number))),
                make("td", {}, votes > 0 ? `+${votes}` : String(votes)),
            );
        }
    }

    /** Settings were filled in: the form is above, and its first field waits for a new name. */
    const showForm = () => {
        const name = root().querySelector("#lora_train_name :is(input, textarea)");
        name.scrollIntoView({ block: "center" });
        name.focus({ preventScroll: true });
    };

    let viewer = null;
    let revision = null;
    let answer = null;
    let pressed = 0; // when; a list that opens over the page may keep the release to itself, so it counts for a while
    for (const name of ["pointerdown", "pointerup", "pointercancel"]) {
        document.addEventListener(name, () => (pressed = name === "pointerdown" ? Date.now() : 0), true);
    }

    const look = () => {
        if (Date.now() - pressed < PRESS) return; // a button that is exchanged while it is pressed is never clicked
        const element = root().querySelector("#lora_train_grid .lt-viewer");
        if (!element) return;
        if (!viewer || viewer.element !== element) {
            viewer = new Viewer(element);
            revision = null;
        }
        const said = answered();
        if (said && numberOf(said) !== answer) {
            answer = numberOf(said);
            viewer.answer(said);
            if (said.dataset.then === "form") showForm();
        }
        const block = root().querySelector("#lora_train_grid_data .lt-grid-data");
        const found = block ? block.dataset.revision : "";
        if (found === revision) return;
        revision = found;
        if (block) viewer.show(JSON.parse(block.dataset.view));
        else viewer.clear();
    };
    setInterval(look, 300);
})();
