// The grid's files and weights in the order of a number.
loraTrain.define("gridRanking", [], ({ make }) => {
    class Ranking {
        /** `viewer` holds what is chosen; see lora_train_grid_viewer.js. */
        constructor(viewer) {
            this.viewer = viewer;
            this.element = make("details", { className: "lt-v-ranking", open: true });
            this.sort = "loss";
        }

        /** Show the table, if something in it has changed. */
        refresh() {
            const { data } = this.viewer;
            const { view } = data;
            if (!this.viewer.isStale("ranking", view.groups, view.votes, this.sort, view.best)) return;
            const sums = data.voteSums();
            const body = this.ranked(sums).map((group) => this.rank(group, sums));
            const head = make("tr", {}, make("th"), ...this.heads());
            const table = make("table", { className: "lt-files" }, make("thead", {}, head), make("tbody", {}, ...body));
            this.element.replaceChildren(
                make("summary", {}, data.text("ranking")),
                make("div", { className: "lt-v-scroll" }, table),
                this.legend(),
            );
        }

        heads() {
            const { data } = this.viewer;
            const names = data.measured.map(({ key, name, tells }) => [key, name, tells]);
            const sortBy = (key) => () => {
                this.sort = key;
                this.refresh();
            };
            return [...names, ["votes", data.text("votes"), ""]].map(([key, name, tells]) =>
                make(
                    "th",
                    { scope: "col", title: tells, "aria-sort": key === this.sort ? "ascending" : "none" },
                    make("button", { type: "button", onclick: sortBy(key), data: { sort: key } }, name),
                ),
            );
        }

        /** What each number tells, for those who have no mouse to rest on its name. */
        legend() {
            const { measured } = this.viewer.data;
            if (measured.length === 0) return "";
            const entries = measured.map(({ name, tells }) => make("div", {}, make("b", {}, name), ` ${tells}`));
            return make("div", { className: "lt-v-legend" }, ...entries);
        }

        /** Groups of files and weights, the best first; those without the number last. */
        ranked(sums) {
            const { view } = this.viewer.data;
            const number = view.numbers.find(({ key }) => key === this.sort);
            const value = (group) => {
                if (this.sort === "votes") return -(sums.get(`${group.column}/${group.weight}`) || 0);
                if (!(this.sort in group.numbers)) return Infinity;
                return number.better === "low" ? group.numbers[this.sort] : -group.numbers[this.sort];
            };
            const keyed = view.groups.map((group) => [value(group), group]);
            return keyed.sort(([a], [b]) => (a === b ? 0 : a - b)).map(([, group]) => group);
        }

        rank(group, sums) {
            const { viewer } = this;
            const { data } = viewer;
            const place = { column: group.column, weight: Math.max(group.weight, 0) };
            const label = [data.label("column", group.column)];
            if (group.weight >= 0) label.push(data.label("weight", group.weight));
            const star = data.isBest(place) ? " ★" : "";
            const onclick = () => viewer.choose({ ...viewer.place, ...place });
            const button = make("button", { type: "button", onclick }, label.join(" · ") + star);
            const votes = sums.get(`${group.column}/${group.weight}`) || 0;
            return make(
                "tr",
                { className: star ? "lt-best" : "" },
                make("th", { scope: "row" }, button),
                ...data.measured.map((number) => make("td", {}, data.withSpread(group, number))),
                make("td", {}, votes > 0 ? `+${votes}` : String(votes)),
            );
        }
    }

    return { Ranking };
});
