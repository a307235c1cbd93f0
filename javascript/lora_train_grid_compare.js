// Two cells of the grid, compared: side by side, one after the other, or divided by a line.
loraTrain.define("gridCompare", ["gridPieces"], ({ gridPieces, make }) => {
    const FLICKER = 500; // ms; slower than what can harm people

    class Comparison {
        /** `viewer` holds what is chosen; see lora_train_grid_viewer.js. */
        constructor(viewer) {
            this.viewer = viewer;
            this.element = make("div", { className: "lt-v-compare" });
            this.pins = {}; // "A" and "B" → place
            this.mode = "side";
            this.wipe = 50;
        }

        /** Take the chosen cell for A or B. */
        pin(which) {
            this.pins[which] = { ...this.viewer.place };
            this.build();
        }

        /** Another document: without cells that are not in it; `isOther` for another run. */
        renew(isOther) {
            const there = Object.entries(this.pins).filter(([, place]) => this.viewer.data.exists(place));
            this.pins = isOther ? {} : Object.fromEntries(there);
            this.build();
        }

        stopFlicker() {
            clearInterval(this.flicker);
            this.flicker = null;
        }

        build() {
            this.stopFlicker();
            const { A, B } = this.pins;
            this.element.replaceChildren();
            if (!A && !B) return;
            const side = () => {
                const figures = ["A", "B"].filter((pin) => this.pins[pin]).map((pin) => this.pinned(pin));
                return make("div", { className: "lt-v-side" }, ...figures);
            };
            this.element.append(this.buttons(), A && B && this.mode !== "side" ? this.stack() : side());
        }

        button(name, onclick, props = {}) {
            return gridPieces.named(name, this.viewer.data.text(name), onclick, props);
        }

        buttons() {
            const { A, B } = this.pins;
            const set = (mode) => () => {
                this.mode = mode;
                this.build();
            };
            const modes = ["side", "flicker", "wipe"].map((mode) =>
                this.button(mode, set(mode), { "aria-pressed": String(mode === this.mode), disabled: !(A && B) }),
            );
            const close = () => {
                this.pins = {};
                this.build();
            };
            const title = make("b", {}, this.viewer.data.text("compare"));
            return gridPieces.row(title, ...modes, this.button("close", close));
        }

        // ---------------------------------------------------------- pictures
        pinName(pin) {
            const { data } = this.viewer;
            const place = this.pins[pin];
            const prompt = data.view.prompts.length > 1 ? ` · ${data.label("prompt", place.prompt)}` : "";
            return `${pin}: ${data.name(place)}${prompt}`;
        }

        pinned(pin) {
            return make("figure", {}, this.picture(pin), make("figcaption", {}, this.pinName(pin)));
        }

        picture(pin) {
            const picture = make("img", { alt: this.pinName(pin), data: { pin } });
            this.load(picture);
            return picture;
        }

        load(picture) {
            const { data } = this.viewer;
            const cell = data.cell(this.pins[picture.dataset.pin]);
            const url = cell && cell.drawn ? data.url(cell) : "";
            if (url && picture.getAttribute("src") !== url) picture.src = url;
        }

        /** Show pictures that have been drawn meanwhile. */
        refresh() {
            for (const picture of this.element.querySelectorAll("img[data-pin]")) this.load(picture);
        }

        // ---------------------------------------------------------- both in one place
        stack() {
            const stack = make("div", { className: "lt-v-stack" }, this.picture("A"), this.picture("B"));
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
                "aria-label": this.viewer.data.text("wipe"),
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
                event.target.textContent = this.viewer.data.text(this.flicker ? "stop" : "go");
            };
            return this.button("stop", toggle);
        }
    }

    return { Comparison };
});
