export type Theme = "auto" | "light" | "dark";

const KEY = "mor-theme";

export function theme(): Theme {
  const stored = localStorage.getItem(KEY);
  return stored === "light" || stored === "dark" ? stored : "auto";
}

export function setTheme(chosen: Theme): void {
  localStorage.setItem(KEY, chosen);
  show();
}

/** Apply the chosen theme to the page. */
export function show(): void {
  inTheme(theme());
}

/** Apply a theme to the page, without choosing it; ``auto`` follows the system. */
export function inTheme(chosen: Theme): void {
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  window.dispatchEvent(new Event("mor-theme"));
}

/** Call ``changed`` whenever colours change; returns a function that ends this. */
export function onTheme(changed: () => void): () => void {
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", changed);
  window.addEventListener("mor-theme", changed);
  return () => {
    system.removeEventListener("change", changed);
    window.removeEventListener("mor-theme", changed);
  };
}

/** Return a colour of the theme, for drawings without CSS. */
export function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
