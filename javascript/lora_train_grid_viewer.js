// The viewer of an epoch × weight grid. The server puts the grid's document into a hidden block (ui/html/grid.py); this
// looks there for a new revision and shows it. What the person does with a cell goes back through a hidden text box.
// Texts come translated with the document; everything is inserted as text, never as markup.
loraTrain.define("gridViewer", ["gridAxes", "gridCompare", "gridDetail", "gridRanking", "gridTable"], (parts) => {
    const { find, gridAxes, gridCompare, gridData, gridDetail, gridRanking, gridSend, gridTable } = parts;
    const { make, whenChanged } = parts;
    const { AXES, GridData } = gridData;
    const PRESS = 1500; // ms that a press lasts at most
    const CLICK = 100; // ms after the release in which a finger's click comes

    /** What is chosen, and the parts of the page that show it. */
    class Viewer {
        constructor(element) {
            this.element = element;
            this.rows = "weight";
            this.columns = "column";
            this.width = 64;
            this.forget();
            this.cast = new Map(); // cell's key → its vote that the server's document may not tell yet
            this.signs = {};
            this.bar = new gridAxes.AxisBar(this);
            this.table = new gridTable.Table(this);
            this.detail = new gridDetail.Detail(this);
            this.comparison = new gridCompare.Comparison(this);
            this.ranking = new gridRanking.Ranking(this);
        }

        // ---------------------------------------------------------- the document
        take(view) {
            const isOther = this.run !== view.run;
            this.run = view.run;
            const cast = [...this.cast].map(([key, { value }]) => [key, value]);
            this.data = new GridData({ ...view, votes: { ...view.votes, ...Object.fromEntries(cast) } });
            if (this.structure === this.data.structure) {
                this.refresh();
                return;
            }
            this.structure = this.data.structure;
            this.signs = {};
            if (isOther) Object.assign(this, { rows: "weight", columns: "column" });
            if (isOther || !this.data.exists(this.place)) {
                Object.assign(this, { place: this.data.first(), touched: false });
            }
            this.build(isOther);
        }

        forget() {
            this.structure = "";
            this.run = "";
        }

        clear() {
            this.comparison.stopFlicker();
            this.forget();
            this.element.replaceChildren();
        }

        // ---------------------------------------------------------- the parts of the page
        build(isOther) {
            this.element.replaceChildren(
                this.bar.element,
                make("small", { className: "lt-v-keys" }, this.data.text("keys")),
                make("div", { className: "lt-v-main" }, this.table.element, this.detail.element),
                this.comparison.element,
                this.ranking.element,
            );
            this.buildTable();
            this.comparison.renew(isOther);
            this.refresh();
        }

        buildTable() {
            const { data, element } = this;
            const [width, height] = data.view.size;
            element.style.setProperty("--lt-columns", data.values(this.columns).length);
            element.style.setProperty("--lt-head", this.rows === "prompt" ? "150px" : "76px");
            element.style.setProperty("--lt-shape", `${width} / ${height}`);
            this.resize(this.width);
            this.bar.build();
            this.table.build();
        }

        resize(width) {
            this.width = width;
            this.element.style.setProperty("--lt-cell", `${width}px`);
        }

        /** Show what has changed within the same structure, and leave everything else alone. */
        refresh() {
            if (!this.touched && this.data.view.best.column !== undefined) this.select(this.data.first(), false);
            this.table.refresh();
            this.detail.refresh();
            this.ranking.refresh();
            this.comparison.refresh();
            if (!this.touched) this.table.revealBest();
        }

        /** Whether a part has to be made anew: what it shows is another than the last time. */
        isStale(part, ...state) {
            const sign = JSON.stringify(state);
            if (this.signs[part] === sign) return false;
            this.signs[part] = sign;
            return true;
        }

        // ---------------------------------------------------------- choosing
        /** Put another axis on a side; where it is on the other one, the two change places. */
        turn(side, axis) {
            const other = side === "rows" ? "columns" : "rows";
            if (this[other] === axis) this[other] = this[side];
            this[side] = axis;
            this.buildTable();
        }

        /** Show another value of an axis that is neither rows nor columns. */
        show(values) {
            this.touched = true;
            this.place = { ...this.place, ...values };
            this.buildTable();
            this.detail.refresh();
        }

        /** Choose a cell, as the person wants it. */
        choose(place) {
            this.touched = true;
            this.select(place, true);
        }

        select(place, focus) {
            const isHere = AXES.every(
                (axis) => axis === this.rows || axis === this.columns || place[axis] === this.place[axis],
            );
            this.place = { ...place };
            if (isHere) this.table.mark(focus);
            else this.buildTable();
            this.detail.refresh();
        }
    }

    /** Settings were filled in: the form is above, and its first field waits for a new name. */
    const showForm = () => {
        const name = find("#lora_train_name :is(input, textarea)");
        name.scrollIntoView({ block: "center" });
        name.focus({ preventScroll: true });
    };

    let viewer = null;
    let revision = null;
    let answer = null;

    const hear = () => {
        const said = gridSend.answered();
        if (!said || gridSend.numberOf(said) === answer) return;
        answer = gridSend.numberOf(said);
        viewer.detail.answer(said);
        if (said.dataset.then === "form") showForm();
    };

    const look = () => {
        const element = find("#lora_train_grid .lt-viewer");
        if (!element) return;
        if (!viewer || viewer.element !== element) {
            viewer = new Viewer(element);
            revision = null;
        }
        hear();
        const block = find("#lora_train_grid_data .lt-grid-data");
        const found = block ? block.dataset.revision : "";
        if (found === revision) return;
        revision = found;
        if (block) viewer.take(JSON.parse(block.dataset.view));
        else viewer.clear();
    };

    // A button that is exchanged while it is pressed is never clicked. A list that opens over the page may keep the
    // release to itself, so a press counts for a while only.
    let pressed = 0; // when
    let due = 0;
    const lookSoon = () => {
        clearTimeout(due);
        const left = pressed + PRESS - Date.now();
        if (left > 0) due = setTimeout(lookSoon, left);
        else look();
    };
    const release = () => {
        pressed = 0;
        clearTimeout(due);
        due = setTimeout(lookSoon, CLICK);
    };
    const press = () => {
        pressed = Date.now();
    };
    document.addEventListener("pointerdown", press, true);
    for (const name of ["pointerup", "pointercancel"]) document.addEventListener(name, release, true);
    whenChanged(lookSoon);
});
