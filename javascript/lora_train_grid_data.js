// What a grid's document says, for those who show it. The server makes it, its texts translated (ui/html/grid.py).
loraTrain.define("gridData", [], () => {
    const AXES = ["column", "weight", "prompt", "seed"];
    const USUAL_WEIGHT = 0.8;

    /** A grid's cells, groups and names. A place is the number of a value on each axis: `{column, weight, prompt, seed}`. */
    class GridData {
        constructor(view) {
            this.view = view;
            this.cells = new Map();
            for (const [column, weight, prompt, seed, key, drawn, numbers] of view.cells) {
                this.cells.set(`${column}/${weight}/${prompt}/${seed}`, { key, drawn, numbers });
            }
            this.groups = new Map(view.groups.map((group) => [`${group.column}/${group.weight}`, group]));
            this.measured = view.numbers.filter(({ key }) => view.groups.some((group) => key in group.numbers));
            const losses = view.groups.map((group) => group.numbers.loss).filter((loss) => loss !== undefined);
            this.losses = losses.length > 0 ? [Math.min(...losses), Math.max(...losses)] : null;
        }

        /** What the parts of the page are built from; where it is as before, they are only filled. */
        get structure() {
            const { run, columns, weights, prompts, seeds, size, texts } = this.view;
            return JSON.stringify([run, columns, weights, prompts, seeds, size, texts]);
        }

        // ---------------------------------------------------------- places
        values(axis) {
            return this.view[`${axis}s`];
        }

        exists(place) {
            return Boolean(place) && AXES.every((axis) => place[axis] < this.values(axis).length);
        }

        /** The recommended cell, or else the last file at about the usual weight. */
        first() {
            const { best, weights, columns } = this.view;
            const wanted = best.weight === undefined ? USUAL_WEIGHT : best.weight;
            const away = weights.map(({ value }) => Math.abs(value - wanted));
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

        isBest(place) {
            const { best, weights } = this.view;
            if (place.column !== best.column || this.weightOf(place) < 0) return false;
            return weights[place.weight].value === best.weight;
        }

        // ---------------------------------------------------------- cells
        cell(place) {
            return this.cells.get(`${place.column}/${this.weightOf(place)}/${place.prompt}/${place.seed}`) || null;
        }

        group(place) {
            return this.groups.get(`${place.column}/${this.weightOf(place)}`) || { numbers: {}, tag: "" };
        }

        url(cell) {
            return `${this.view.pictures}${encodeURIComponent(cell.key)}.png`;
        }

        vote(cell) {
            return cell ? this.view.votes[cell.key] || 0 : 0;
        }

        /** The votes of each group's pictures, by `column/weight`. */
        voteSums() {
            const sums = new Map();
            for (const [column, weight, , , key] of this.view.cells) {
                const name = `${column}/${weight}`;
                sums.set(name, (sums.get(name) || 0) + (this.view.votes[key] || 0));
            }
            return sums;
        }

        // ---------------------------------------------------------- words
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

        digits(value, number) {
            return value.toFixed(number.digits);
        }

        withSpread(group, number) {
            const { [number.key]: value, [number.spread]: spread } = group.numbers;
            if (value === undefined) return "–";
            return this.digits(value, number) + (spread === undefined ? "" : ` ± ${this.digits(spread, number)}`);
        }
    }

    return { AXES, GridData };
});
