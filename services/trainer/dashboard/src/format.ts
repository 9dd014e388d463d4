const NOTHING = "–";

export function number(value: unknown, digits = 3): string {
  if (typeof value !== "number" || !Number.isFinite(value)) return NOTHING;
  const size = Math.abs(value);
  if (size >= 1e6) return value.toExponential(digits - 1);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(+value.toPrecision(digits));
}

export function share(value: number | null | undefined): string {
  return value == null ? NOTHING : `${Math.round(value * 100)} %`;
}

/** Format progress, rounded down: 100 % is finished. */
export function progress(value: number | null | undefined): string {
  return value == null ? NOTHING : `${Math.floor(value * 100)} %`;
}

export function duration(seconds: number | null | undefined): string {
  if (seconds == null) return NOTHING;
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return `${s} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 172_800) return `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`;
  return `${(s / 86_400).toFixed(1)} days`;
}

/** Format a number of bytes with three digits, in binary units. */
export function bytes(size: number | null | undefined): string {
  if (size == null) return NOTHING;
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let amount = size;
  while (amount >= 1000 && units.length > 1) {
    amount /= 1024;
    units.shift();
  }
  return `${+amount.toPrecision(3)} ${units[0]}`;
}

/** Format Unix seconds as local time with its zone, with the date unless it is today. */
export function clock(at: number | null | undefined): string {
  if (at == null) return NOTHING;
  const when = new Date(at * 1000);
  const time = when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short" });
  return when.toDateString() === new Date().toDateString() ? time : `${when.toLocaleDateString([], { dateStyle: "medium" })}, ${time}`;
}

/** Return the name of the browser's time zone, such as GMT+1. */
export function zone(): string {
  return new Intl.DateTimeFormat([], { timeZoneName: "short" }).formatToParts().find((part) => part.type === "timeZoneName")?.value ?? "local";
}

export function counts(of: Record<string, number> | undefined): string {
  const entries = Object.entries(of ?? {});
  return entries.length ? entries.map(([name, count]) => `${words(name)} ${count}`).join(", ") : "none";
}

export function words(name: string): string {
  return name.replaceAll("_", " ");
}
