// Puts the page together.

import * as adapters from "./adapters.js";
import { hasKey, json, renewKey, setAskForKey } from "./api.js";
import * as batch from "./batch.js";
import { setBase } from "./colours.js";
import * as compare from "./compare.js";
import { byId, setText } from "./dom.js";

// How often the list of adapters is asked for while the page is seen: others may change it.
const REFRESH_MS = 15_000;

/** Asks whoever sits there. Null from one who has no key. */
function askForKey(why) {
  const dialog = byId("key-dialog");
  setText(byId("key-why"), why);
  byId("key").value = "";
  dialog.showModal();
  return new Promise((done) => {
    const finish = (key) => {
      byId("key").value = "";
      byId("key-form").onsubmit = null;
      dialog.onclose = null;
      dialog.close();
      byId("change-key").hidden = false;
      done(key);
    };
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      finish(byId("key").value);
    };
    byId("key-cancel").onclick = () => finish(null);
    dialog.onclose = () => finish(null);
  });
}

function trouble(error) {
  byId("trouble").hidden = error === null;
  setText(byId("trouble"), error === null ? "" : error.message);
}

// The adapters that the page was made for.
let names = [];

/** Everything that depends on which names there are. */
async function refresh() {
  try {
    const models = (await json("v1/models")).data.map(({ id, parent }) => ({ id, parent }));
    const base = models.find(({ parent }) => parent === null);
    if (base) setBase(base.id);
    compare.offer(models.map(({ id }) => id));
    names = await adapters.refresh();
    const name = base?.id ?? models[0]?.parent;
    setText(byId("served"), name ? `serves ${name}` : "");
    trouble(null);
  } catch (error) {
    trouble(error);
  }
}

async function begin() {
  setAskForKey(askForKey);
  byId("change-key").addEventListener("click", async () => {
    if (await renewKey(hasKey() ? "A new one takes the place of the one in use." : "")) {
      await refresh();
      batch.restart();
    }
  });
  compare.start(() => adapters.refresh().catch(trouble));
  const index = await json("v1");
  adapters.start(index, refresh);
  await refresh();
  batch.watch();
  setInterval(() => look().catch(() => {}), REFRESH_MS);
}

/** Others may have loaded and unloaded. */
async function look() {
  if (document.hidden) return;
  const now = await adapters.refresh({ asks: false });
  // The server answers again.
  if (!byId("trouble").hidden) await refresh();
  if (now.join() !== names.join()) await refresh();
}

begin().catch(trouble);
