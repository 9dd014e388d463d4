import { render } from "preact";
import { takeTokenFromAddress } from "./api.ts";
import { App } from "./app.tsx";
import { show } from "./theme.ts";

takeTokenFromAddress();
addEventListener("hashchange", takeTokenFromAddress);
show();
const root = document.getElementById("app");
if (root) {
  root.replaceChildren();
  render(<App />, root);
}
