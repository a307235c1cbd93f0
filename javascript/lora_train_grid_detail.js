// The chosen cell of the grid: its picture, its numbers, and what can be done with it.
loraTrain.define("gridDetail", ["gridPieces", "gridSend"], ({ find, gridPieces, gridSend, make, put }) => {
    const { named, row } = gridPieces;
    const LATE = 5000; // ms that an older document may be under way

    const picture = (data, place, cell) => {
        if (!cell || !cell.drawn) return make("div", { className: "lt-pic lt-big" }, gridPieces.waiting(data));
        const image = make("img", { src: data.url(cell), alt: data.name(place) });
        const link = { href: data.url(cell), target: "_blank", title: data.text("open") };
        return make("a", { className: "lt-pic lt-big", ...link }, image);
    };

    const numberTable = (data, cell, group) => {
        const own = cell ? cell.numbers : {};
        const known = data.view.numbers.filter(({ key }) => key in group.numbers || key in own);
        if (known.length === 0) return null;
        const rows = known.map((number) =>
            make(
                "tr",
                { title: number.tells },
                make("th", { scope: "row" }, number.name),
                make("td", {}, number.key in own ? data.digits(own[number.key], number) : ""),
                make("td", {}, data.withSpread(group, number)),
            ),
        );
        const head = make("tr", {}, make("td"), make("td"), make("td", {}, data.text("mean")));
        return make("table", { className: "lt-v-numbers" }, head, ...rows);
    };

    class Detail {
        /** `viewer` holds what is chosen; see lora_train_grid_viewer.js. */
        constructor(viewer) {
            this.viewer = viewer;
            this.element = make("div", { className: "lt-v-detail" });
            this.said = make("div", { role: "status", className: "lt-v-said" }); // what was answered to a button
        }

        /** Show the chosen cell, if another was shown or something of it has changed. */
        refresh() {
            const { data, place } = this.viewer;
            const cell = data.cell(place);
            const group = data.group(place);
            const vote = data.vote(cell);
            if (!this.viewer.isStale("detail", place, cell, vote, group, data.isBest(place))) return;
            const badge = data.isBest(place) ? gridPieces.badge(data) : null;
            put(
                this.element,
                make("div", { className: "lt-head" }, make("b", {}, data.name(place)), badge),
                picture(data, place, cell),
                make("div", { className: "lt-v-prompt" }, data.label("prompt", place.prompt)),
                group.tag ? make("code", {}, group.tag) : null,
                numberTable(data, cell, group),
                ...(cell ? [this.votes(cell, vote), this.actions(place, cell, group), this.pins()] : []),
                this.said,
            );
            if (this.viewer.isStale("place", place)) this.said.replaceChildren();
        }

        button(name, onclick, props = {}) {
            return named(name, this.viewer.data.text(name), onclick, props);
        }

        votes(cell, vote) {
            const { data } = this.viewer;
            const thumb = (value, name) => {
                const next = vote === value ? 0 : value;
                return named(name, gridPieces.thumb(value), () => this.cast(cell, next), {
                    title: data.text(name),
                    "aria-pressed": String(vote === value),
                });
            };
            return row(thumb(1, "voteUp"), thumb(-1, "voteDown"));
        }

        /** Show a vote at once, and send it; a document that was made before may come after its answer. */
        async cast(cell, value) {
            const { cast, data } = this.viewer;
            const vote = { value };
            cast.set(cell.key, vote);
            data.view.votes[cell.key] = value;
            const granted = this.act("vote", vote);
            this.viewer.refresh();
            await granted;
            setTimeout(() => {
                if (cast.get(cell.key) === vote) cast.delete(cell.key);
            }, LATE);
        }

        actions(place, cell, group) {
            const { view } = this.viewer.data;
            const prompt = [view.prompts[place.prompt].text, group.tag].filter(Boolean).join(" ");
            const settings = `${view.settings}, Seed: ${view.seeds[place.seed]}`;
            const used = () => this.say(find("#txt2img_prompt") ? "used" : "copied");
            const use = this.button("use", used, {
                className: "lt-primary lt-use",
                data: { act: "use", prompt, negative: view.negative, settings, replace: "" },
            });
            const off = { disabled: !group.tag };
            return row(
                use,
                this.button("card", () => this.act("card"), off),
                this.button("preview", () => this.act("preview"), { disabled: !group.tag || !cell.drawn }),
                this.button("bake", () => this.act("bake"), off),
                this.button("continue", () => this.act("continue"), off),
            );
        }

        pins() {
            const pin = (which) => () => this.viewer.comparison.pin(which);
            return row(this.button("pinA", pin("A")), this.button("pinB", pin("B")));
        }

        // ---------------------------------------------------------- the server
        async act(action, more = {}) {
            const { data, place } = this.viewer;
            const weight = data.weightOf(place) < 0 ? 0 : data.view.weights[place.weight].value;
            const { key } = data.cell(place);
            const wish = { action, run: data.view.run, key, column: place.column, weight, ...more };
            const button = action === "continue" ? "#lora_train_grid_continue" : "#lora_train_grid_act";
            if (!(await gridSend.ask(button, wish))) this.say("lost", "error");
        }

        say(name, kind = "good") {
            const text = this.viewer.data.text(name);
            this.said.replaceChildren(make("div", { className: `lt-notice lt-${kind}` }, text));
        }

        /** Show what the server has answered beside the buttons. */
        answer(said) {
            this.said.replaceChildren(...said.cloneNode(true).childNodes);
        }
    }

    return { Detail };
});
