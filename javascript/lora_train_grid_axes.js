// The bar above the grid: which axes are rows and columns, the values of the others, and the size of the pictures.
loraTrain.define("gridAxes", ["gridData", "gridPieces"], ({ gridData, gridPieces, make }) => {
    const { AXES } = gridData;
    const TABS = 6; // so many values of an axis are shown as buttons, more as a list

    class AxisBar {
        /** `viewer` holds what is chosen; see lora_train_grid_viewer.js. */
        constructor(viewer) {
            this.viewer = viewer;
            this.element = make("div", { className: "lt-v-bar" });
        }

        build() {
            const { data, rows, columns } = this.viewer;
            const rest = AXES.filter((axis) => axis !== rows && axis !== columns && data.values(axis).length > 1);
            this.element.replaceChildren(
                this.axisChoice("columns"),
                this.axisChoice("rows"),
                ...rest.map((axis) => this.picker(axis)),
                this.sizeSlider(),
            );
        }

        axisChoice(side) {
            const { viewer } = this;
            const { data } = viewer;
            const options = AXES.map((axis) =>
                make("option", { value: axis, selected: viewer[side] === axis }, data.text(axis)),
            );
            const onchange = (event) => viewer.turn(side, event.target.value);
            const select = make("select", { onchange, data: { axis: side } }, ...options);
            return make("label", {}, make("span", {}, data.text(side)), select);
        }

        /** Chooses the value of an axis that is neither rows nor columns. */
        picker(axis) {
            const { data } = this.viewer;
            const labels = data.values(axis).map((_, place) => data.label(axis, place));
            const choices = labels.length <= TABS && axis !== "prompt" ? this.tabs(axis, labels) : this.list(axis, labels);
            const name = make("span", {}, data.text(axis));
            return make("div", { className: "lt-v-picker", data: { picker: axis } }, name, ...choices);
        }

        set(axis, value) {
            this.viewer.show({ [axis]: value });
            this.element.querySelector(`[data-picker="${axis}"] :is(select, [aria-pressed="true"])`).focus();
        }

        tabs(axis, labels) {
            const chosen = this.viewer.place[axis];
            return labels.map((label, place) =>
                gridPieces.button(label, () => this.set(axis, place), {
                    "aria-pressed": String(place === chosen),
                }),
            );
        }

        /** A list between two buttons that go round. */
        list(axis, labels) {
            const chosen = this.viewer.place[axis];
            const options = labels.map((label, place) =>
                make("option", { value: place, selected: place === chosen }, label),
            );
            const step = (by) => this.set(axis, (chosen + by + labels.length) % labels.length);
            const onchange = (event) => this.set(axis, Number(event.target.value));
            return [
                gridPieces.button("‹", () => step(-1), { title: "−1" }),
                make("select", { onchange }, ...options),
                gridPieces.button("›", () => step(1), { title: "+1" }),
            ];
        }

        sizeSlider() {
            const { viewer } = this;
            const oninput = (event) => viewer.resize(Number(event.target.value));
            const slider = make("input", { type: "range", min: 48, max: 420, step: 4, value: viewer.width, oninput });
            return make("label", { className: "lt-v-size" }, make("span", {}, viewer.data.text("size")), slider);
        }
    }

    return { AxisBar };
});
