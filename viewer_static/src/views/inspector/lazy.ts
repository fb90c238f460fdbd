/** Work on elements of a long list: at once where they are near the screen, else when they come near, or in idle time. */

type Job = () => void;

export class Lazy {
  readonly #jobs = new Map<Element, Map<string, Job>>();
  readonly #near = new Set<Element>();
  readonly #observer: IntersectionObserver;
  #idle = false;

  constructor() {
    this.#observer = new IntersectionObserver(
      (entries) => {
        for (const { target, isIntersecting } of entries) {
          if (!isIntersecting) this.#near.delete(target);
          else {
            this.#near.add(target);
            this.now(target);
          }
        }
      },
      // The list scrolls inside a pane: there it is the second margin that counts.
      { rootMargin: "400px 0px", scrollMargin: "400px 0px" },
    );
  }

  /** Starts to follow an element; returns how to stop. */
  watch(element: Element): () => void {
    this.#observer.observe(element);
    return () => {
      this.#observer.unobserve(element);
      this.#jobs.delete(element);
      this.#near.delete(element);
    };
  }

  /** Has `job` done for an element; one of the same name that is still to come is replaced, in its place. */
  do(element: Element, name: string, job: Job): void {
    let jobs = this.#jobs.get(element);
    if (!jobs) this.#jobs.set(element, (jobs = new Map()));
    jobs.set(name, job);
    if (this.#near.has(element)) this.now(element);
    else this.#later();
  }

  /** Does what is to come for an element. */
  now(element: Element): void {
    const jobs = this.#jobs.get(element);
    this.#jobs.delete(element);
    for (const job of jobs?.values() ?? []) job();
  }

  #later(): void {
    if (this.#idle || !this.#jobs.size) return;
    this.#idle = true;
    const work = () => {
      this.#idle = false;
      const next = this.#jobs.keys().next();
      if (!next.done) this.now(next.value);
      this.#later();
    };
    // A busy page has no idle time: then it is done all the same, a little later.
    if (window.requestIdleCallback) window.requestIdleCallback(work, { timeout: 300 });
    else window.setTimeout(work, 100);
  }
}
