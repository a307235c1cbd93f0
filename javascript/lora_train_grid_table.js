// The grid's table: a cell for each value of the rows' and the columns' axis, with picture and numbers.
loraTrain.define("gridTable", ["gridPieces"], ({ gridPieces, make, put }) => {
    const BELOW = new Set(["loss", "copy", "leak"]); // numbers below a picture

    /** The longer and redder, the higher the loss is among all. */
    const lossBar = (data, place) => {
        const { loss } = data.group(place).numbers;
        if (loss === undefined) return null;
        const [low, high] = data.losses;
        const share = high > low ? (loss - low) / (high - low) : 0;
        const style = { width: `${8 + 92 * share}%`, background: `hsl(${Math.round(130 * (1 - share))} 65% 45%)` };
        return make("div", { className: "lt-lossbar" }, make("i", { style }));
    };

    const thumbnail = (data, place, cell, vote) => {
        const isDrawn = cell && cell.drawn;
        const image = { loading: "lazy", decoding: "async", alt: data.name(place), src: isDrawn ? data.url(cell) : "" };
        const frame = make("div", { className: "lt-pic" }, isDrawn ? make("img", image) : gridPieces.waiting(data));
        if (data.isBest(place)) frame.append(gridPieces.badge(data));
        if (vote) frame.append(make("i", { className: "lt-vote" }, gridPieces.thumb(vote)));
        return frame;
    };

    const caption = (data, numbers) => {
        const known = data.view.numbers.filter(({ key }) => BELOW.has(key) && key in numbers);
        const parts = known.map((number) => {
            const value = make("b", {}, data.digits(numbers[number.key], number));
            return make("span", { title: number.tells }, `${number.name} `, value);
        });
        return make("div", { className: "lt-nums" }, ...parts);
    };

    class Table {
        /** `viewer` holds what is chosen; see lora_train_grid_viewer.js. */
        constructor(viewer) {
            this.viewer = viewer;
            this.table = make("table", { className: "lt-v-table", role: "grid" });
            // What is pressed may be exchanged before the release, and is then never clicked: a mouse chooses at once.
            // A finger may be about to scroll.
            this.table.addEventListener("pointerdown", (event) => {
                if (event.pointerType === "mouse" && event.button === 0) this.clicked(event);
            });
            this.table.addEventListener("click", (event) => this.clicked(event));
            this.table.addEventListener("keydown", (event) => this.pressed(event));
            this.element = make("div", { className: "lt-v-scroll" }, this.table);
            this.shown = new Map(); // cell's element → its place on the axes that are rows and columns
        }

        build() {
            const { data, rows, columns } = this.viewer;
            this.shown = new Map();
            const heads = data.values(columns).map((_, place) => this.head("col", columns, place));
            this.elements = data
                .values(rows)
                .map((_, row) => data.values(columns).map((__, column) => this.emptyCell(row, column)));
            const lines = this.elements.map((cells, row) => make("tr", {}, this.head("row", rows, row), ...cells));
            this.table.replaceChildren(
                make("thead", {}, make("tr", {}, make("td", { className: "lt-corner" }), ...heads)),
                make("tbody", {}, ...lines),
            );
            this.refresh();
            this.mark();
        }

        head(scope, axis, place) {
            const label = this.viewer.data.label(axis, place);
            return make("th", { scope, title: label }, make("span", {}, label));
        }

        emptyCell(row, column) {
            const element = make("td", { className: "lt-cell", role: "gridcell", tabIndex: -1 });
            this.shown.set(element, { [this.viewer.rows]: row, [this.viewer.columns]: column });
            return element;
        }

        /** Place of a cell of the table: what the table does not say is as chosen. */
        placeOf(element) {
            return { ...this.viewer.place, ...this.shown.get(element) };
        }

        // ---------------------------------------------------------- what is in the cells
        /** Fill those cells anew that have changed. */
        refresh() {
            for (const element of this.shown.keys()) this.fill(element);
        }

        fill(element) {
            const { data } = this.viewer;
            const place = this.placeOf(element);
            const cell = data.cell(place);
            const numbers = { ...data.group(place).numbers, ...(cell ? cell.numbers : {}) };
            const vote = data.vote(cell);
            const sign = JSON.stringify([cell, numbers, vote, data.isBest(place), data.losses]);
            if (element.ltSign === sign) return;
            element.ltSign = sign;
            element.classList.toggle("lt-best", data.isBest(place));
            put(element, thumbnail(data, place, cell, vote), caption(data, numbers), lossBar(data, place));
        }

        // ---------------------------------------------------------- the chosen one
        /** Mark the chosen cell. */
        mark(focus = false) {
            const { place, rows, columns } = this.viewer;
            const chosen = this.elements[place[rows]][place[columns]];
            for (const element of new Set([this.marked, chosen].filter(Boolean))) {
                element.setAttribute("aria-selected", String(element === chosen));
                element.tabIndex = element === chosen ? 0 : -1;
            }
            this.marked = chosen;
            if (!focus) return;
            chosen.focus({ preventScroll: true });
            chosen.scrollIntoView({ block: "nearest", inline: "nearest" });
        }

        /** Scroll so that the recommended cell is seen whole, below the head that stays. */
        revealBest() {
            const best = this.table.querySelector(".lt-best");
            const box = this.element;
            if (!best || !box.clientHeight) return;
            const top = best.offsetTop - this.table.tHead.offsetHeight;
            const bottom = best.offsetTop + best.offsetHeight + 4 - box.clientHeight;
            if (box.scrollTop < bottom || box.scrollTop > top) box.scrollTop = Math.min(top, Math.max(bottom, 0));
        }

        clicked(event) {
            const element = event.target.closest("td.lt-cell");
            if (element) this.viewer.choose(this.placeOf(element));
        }

        /** Arrow keys choose the neighbour. */
        pressed(event) {
            const { data, place, rows, columns } = this.viewer;
            const moves = {
                ArrowUp: [rows, -1],
                ArrowDown: [rows, 1],
                ArrowLeft: [columns, -1],
                ArrowRight: [columns, 1],
            };
            if (!moves[event.key]) return;
            event.preventDefault();
            const [axis, by] = moves[event.key];
            const value = Math.min(Math.max(place[axis] + by, 0), data.values(axis).length - 1);
            this.viewer.choose({ ...place, [axis]: value });
        }
    }

    return { Table };
});
