/** Light or dark: as the system has it until the person says otherwise. Kept where the browser lets us. */
const KEY = "unipo-theme";

function stored(): string | null {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

class Theme {
  dark = $state(false);

  start(): void {
    const system = matchMedia("(prefers-color-scheme: dark)");
    const chosen = stored();
    this.dark = chosen ? chosen === "dark" : system.matches;
    system.addEventListener("change", (event) => {
      if (!stored()) this.#set(event.matches);
    });
    this.#apply();
  }

  toggle(): void {
    this.#set(!this.dark);
    try {
      localStorage.setItem(KEY, this.dark ? "dark" : "light");
    } catch {
      // A sandboxed frame has no storage: the choice lasts as long as the page.
    }
  }

  #set(dark: boolean): void {
    this.dark = dark;
    this.#apply();
  }

  #apply(): void {
    document.documentElement.dataset.theme = this.dark ? "dark" : "light";
  }
}

export const theme = new Theme();
