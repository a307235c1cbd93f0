// The table of runs: a press on a name chooses the run (ui/panels/run_list.py).
loraTrain.define("runs", [], ({ send }) => {
    document.addEventListener("click", (event) => {
        const chosen = event.target.closest && event.target.closest(".lt-choose");
        if (!chosen) return;
        event.preventDefault();
        send("#lora_train_run_wish", chosen.dataset.run, "#lora_train_run_choose");
    });
});
