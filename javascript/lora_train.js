// What the page's scripts share. The WebUI loads every file of this folder by itself, in the order of their names, and the
// page of its own puts them behind each other (lora_trainer/ui/standalone.py); so this one comes first.
(() => {
    if (window.loraTrain) return; // the extension may be installed twice

    const BESIDE = 40; // ms that gradio is given to take over what is put into a field
    const SETTLE = 50; // ms in which several changes of the page count as one
    const SECOND = 1000; // ms

    const root = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const find = (selector) => root().querySelector(selector);
    const findAll = (selector) => [...root().querySelectorAll(selector)];
    const press = (selector) => find(selector)?.click();

    /** Whether an element is there and no tab or fold hides it. */
    const isInView = (element) => Boolean(element) && element.offsetParent !== null;

    /** Put a text into a field so that gradio takes it over. */
    const type = (field, text) => {
        field.value = text;
        field.dispatchEvent(new Event("input", { bubbles: true }));
    };

    /** Put a text into a hidden text box, and press a hidden button that sends it to the server. */
    const send = (box, text, button) => {
        type(find(`${box} :is(textarea, input)`), text);
        setTimeout(() => press(button), BESIDE);
    };

    /** Make an element from its properties, attributes, `style`, `data` and listeners (`onclick`). */
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

    /** Do something as soon as the tab stands in the page: gradio puts in all that it has made at one time. */
    const whenMade = (act) => {
        const look = () => {
            const tab = find("#lora_train");
            if (tab) act(tab);
            return Boolean(tab);
        };
        if (look()) return;
        const observer = new MutationObserver(() => {
            if (look()) observer.disconnect();
        });
        observer.observe(document, { childList: true, subtree: true });
    };

    /** Do something when an element comes into view for the first time; where there is none, nothing. */
    const whenSeen = (selector, act) =>
        whenMade(() => {
            const element = find(selector);
            const observer = new IntersectionObserver((entries) => {
                if (!entries.some((entry) => entry.isIntersecting)) return;
                observer.disconnect();
                act();
            });
            if (element) observer.observe(element);
        });

    const changed = [];
    let due = 0;
    /** Do something after each change of what stands in the tab. */
    const whenChanged = (act) => {
        changed.push(act);
        whenMade(act);
    };
    whenMade((tab) => {
        const tell = () => {
            due = 0;
            for (const act of changed) act();
        };
        const later = () => {
            due ||= setTimeout(tell, SETTLE);
        };
        new MutationObserver(later).observe(tab, { childList: true, subtree: true });
    });

    const ticked = [];
    let seconds = 0;
    /** Do something every so many seconds while the browser shows the page: the only clock of these scripts. */
    const every = (period, act) => ticked.push({ period, act });
    setInterval(() => {
        if (document.hidden) return;
        seconds += 1;
        for (const { period, act } of ticked) if (seconds % period === 0) act();
    }, SECOND);

    const parts = { BESIDE, every, find, findAll, isInView, make, press, put, send, type, whenChanged, whenSeen };
    const waiting = [];
    const setUpReady = () => {
        const ready = waiting.findIndex(({ needs }) => needs.every((each) => each in parts));
        if (ready < 0) return;
        const [{ name, setUp }] = waiting.splice(ready, 1);
        parts[name] = setUp(parts) || {};
        setUpReady();
    };

    window.loraTrain = {
        filled: false, // whether the form has been filled in (ui/widgets/keep.py)
        advised: () => parts.form.advised(), // the server has answered (ui/panels/settings.py)
        /** Set up a part of the scripts, once, and not before those that it needs; it gets what they return, by name. */
        define: (name, needs, setUp) => {
            if (name in parts || waiting.some((each) => each.name === name)) return;
            waiting.push({ name, needs, setUp });
            setUpReady();
        },
    };
})();
