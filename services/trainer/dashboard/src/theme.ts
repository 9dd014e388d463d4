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

/** The chosen theme on the page; ``auto`` follows the system. */
export function show(): void {
  const chosen = theme();
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  window.dispatchEvent(new Event("mor-theme"));
}

/** Calls ``changed`` whenever colours are others; returns how to end that. */
export function onTheme(changed: () => void): () => void {
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", changed);
  window.addEventListener("mor-theme", changed);
  return () => {
    system.removeEventListener("change", changed);
    window.removeEventListener("mor-theme", changed);
  };
}

/** A colour of the theme, for what CSS does not paint. */
export function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
